"""Self-consistency: several samples are drawn, and the client sees the one that the majority agrees with."""

import time
from collections.abc import Sequence
from dataclasses import replace

from sightloom.model.reasoning import majority
from sightloom.model.thinking import Parsed
from sightloom.serving.assemble import Ballot, Piece
from sightloom.serving.replies import Draft, Tally
from sightloom.serving.samples import Samples


class Voted:
    """The samples of one request as a single one: silent until all have ended, then the winner's answer.

    Args:
        samples: what is drawn, closed with this.
        count: how many.
    """

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples = samples
        self._tally = Tally()
        self._drafts = [Draft() for _ in range(count)]
        self._ended = False

    @property
    def idle(self) -> bool:
        """Whether the next piece has yet to be waited for."""
        return not self._ended

    async def next(self, idle_s: float | None = None) -> Piece | None:
        """The winner's whole answer; None when nothing was decided for `idle_s` seconds. See `Samples.next`."""
        until = None if idle_s is None else time.monotonic() + idle_s
        if self._ended:
            raise StopAsyncIteration
        while True:
            try:
                piece = await self._samples.next(None if until is None else max(0.0, until - time.monotonic()))
            except StopAsyncIteration:
                self._ended = True
                return _winner(self._drafts, self._tally)
            if piece is None:
                return None
            self._tally.add(piece)
            self._drafts[piece.index].add(piece)

    async def close(self) -> None:
        """Abort what still runs."""
        await self._samples.close()


def _winner(drafts: Sequence[Draft], tally: Tally) -> Piece:
    """One piece with the winner's text and everybody's tokens; a tie goes to the first."""
    answers = [_parsed(draft) for draft in drafts]
    vote = majority(answers, [-float(index) for index in range(len(drafts))])
    chosen, last = answers[vote.index], drafts[vote.index].last
    assert last is not None
    return replace(
        last,
        index=0,
        reasoning=chosen.thinking or "",
        answer=chosen.content,
        num_reasoning_tokens=tally.num_reasoning,
        num_answer_tokens=tally.num_answer,
        usage=tally.prompt,
        timing=drafts[vote.index].timing,
        ballot=Ballot(len(drafts), vote.votes, round(vote.agreement, 4)),
    )


def _parsed(draft: Draft) -> Parsed:
    assert draft.last is not None
    content = "".join(draft.answer)
    well_formed = draft.last.thinking in ("complete", "off") and bool(content)
    return Parsed("".join(draft.reasoning), content, well_formed)

"""From an engine's deltas to the pieces that a client sees: borders stripped, stop strings cut, on the answer alone."""

from dataclasses import dataclass

from sightloom.serving.engines.base import Delta, Finish, Outcome, PromptUsage, Timing


@dataclass(frozen=True, slots=True)
class Ballot:
    """How a vote went: samples drawn, votes for the winner, their share of the samples that were well formed."""

    n: int
    votes: int
    agreement: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice adds to the reply. `ballot`: it won a vote among several samples."""

    index: int
    reasoning: str = ""
    answer: str = ""
    num_reasoning_tokens: int = 0
    num_answer_tokens: int = 0
    usage: PromptUsage | None = None
    finish: Finish | None = None
    thinking: Outcome | None = None
    timing: Timing | None = None
    ballot: Ballot | None = None


class Border:
    """Strips white space at both ends of a text that arrives in pieces, and cuts it at the first stop string.

    What could still become a border or the beginning of a stop string is held back until more is known.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = stops
        self._held = ""
        self._begun = False
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; return what is certain to be shown."""
        if self.stopped:
            return ""
        self._held += text
        cuts = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            return self._show(self._held[: min(cuts)].rstrip(), "")
        safe = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        safe = len(self._held[:safe].rstrip())
        return self._show(self._held[:safe], self._held[safe:])

    def end(self) -> str:
        """No more text comes; return the rest."""
        return "" if self.stopped else self._show(self._held.rstrip(), "")

    def _show(self, text: str, held: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self._held = held
        return text


class Assembler:
    """One choice's reply in the making."""

    def __init__(self, index: int, stops: tuple[str, ...]) -> None:
        self._index = index
        self._reasoning = Border()
        self._answer = Border(stops)
        self._thinking: Outcome | None = None

    @property
    def stopped(self) -> bool:
        """A stop string was met: nothing more is wanted from the engine."""
        return self._answer.stopped

    def push(self, delta: Delta) -> Piece:
        """The piece that a delta adds."""
        reasoning, answer = self._reasoning.push(delta.reasoning), self._answer.push(delta.answer)
        self._thinking = delta.thinking or self._thinking
        finish = delta.finish
        if self.stopped:
            finish = "stop"
        elif finish is not None:
            reasoning, answer = reasoning + self._reasoning.end(), answer + self._answer.end()
        return Piece(
            self._index,
            reasoning,
            answer,
            delta.num_reasoning_tokens,
            delta.num_answer_tokens,
            delta.usage,
            finish,
            (self._thinking or "off") if finish is not None else None,
            delta.timing,
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string may still begin with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)

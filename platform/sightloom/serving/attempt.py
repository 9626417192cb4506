"""One attempt to answer a chat request, and what is known of it so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sightloom.serving.assemble import Piece
from sightloom.serving.dispatch import Route
from sightloom.serving.engines.base import EngineRequest
from sightloom.serving.gate import Visit
from sightloom.serving.observe import Outcome, Watch
from sightloom.serving.protocol import ChatRequest
from sightloom.serving.replies import Head, Tally
from sightloom.serving.samples import Samples
from sightloom.serving.voting import Voted


@dataclass(frozen=True, slots=True)
class Attempt:
    """A second one is made elsewhere where the first fails before its first byte.

    `lost_s`: seconds that earlier attempts took; the client waited for them, the version is not to blame.
    """

    visit: Visit
    chat: ChatRequest
    route: Route
    asked: Sequence[EngineRequest]
    head: Head
    samples: Samples | Voted
    watch: Watch
    lost_s: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def add(self, piece: Piece) -> None:
        """Count a piece."""
        self.tally.add(piece)
        self.watch.see(piece)
        facts = self.visit.facts
        if piece.thinking is not None:
            facts.thinking.append(piece.thinking)
        if piece.timing is not None and piece.index == 0:
            timing = piece.timing
            facts.queue_s, facts.engine_first_s, facts.engine_total_s = timing.queue_s, timing.first_s, timing.total_s
        facts.finish = piece.finish or facts.finish

    def note(self, outcome: Outcome) -> None:
        """Tell the visit how it ended."""
        facts, tally = self.visit.facts, self.tally
        facts.ttft_s = None if outcome.ttft_s is None else outcome.ttft_s + self.lost_s
        facts.tpot_s = outcome.tpot_s
        facts.tokens = {
            "prompt": tally.prompt.prompt, "image": tally.prompt.image, "reasoning": tally.num_reasoning,
            "answer": tally.num_answer,
        }  # fmt: skip

    async def close(self, cancelled: bool) -> None:
        """Abort what still runs; `cancelled`: the client hung up. A second time it does nothing new."""
        visit = self.visit
        if cancelled:
            visit.facts.cancelled = "decode" if self.tally.total else "prefill"
        visit.num_tokens = self.tally.total
        await self.samples.close()

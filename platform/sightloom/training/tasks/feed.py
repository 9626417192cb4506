"""What the supervised objectives share: the steps' samples, read and encoded ahead, and the place for a restart."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sightloom.training.corpus import Corpus, Picked
from sightloom.training.curriculum import Stage
from sightloom.training.order import Order
from sightloom.training.packing import Limits, StepPlan, share_of
from sightloom.training.parallel import Workers
from sightloom.training.reader import Ahead, Reader

B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class _Ready(Generic[B]):
    batches: list[B]
    uids: list[str]
    after: dict[str, int]


class Feed(Generic[B]):
    """This worker's micro-batches, step after step.

    Args:
        build: makes one micro-batch of the samples of some bins.
        merged: one micro-batch of all the worker's bins, not one a bin.
    """

    def __init__(
        self,
        corpus: Corpus,
        stage: Stage,
        seed: int,
        workers: Workers,
        build: Callable[[list[Picked]], B],
        merged: bool,
    ) -> None:
        limits = Limits(stage.batch.max_tokens, stage.batch.max_patches)
        order = Order(corpus.sources(stage), seed, stage.batch.window)
        self._plan = StepPlan(order, corpus.lengths(stage), corpus.patches, limits, stage.batch.packs, seed)
        self._workers, self._build, self._merged = workers, build, merged
        self._reader = Reader(corpus)
        self._place = self._plan.state()
        self._ahead = Ahead(self._make)
        self.uids: list[str] = []

    def next(self) -> list[B]:
        """The next step's micro-batches."""
        ready = next(self._ahead)
        self._place, self.uids = ready.after, ready.uids
        return ready.batches

    def state(self) -> dict[str, Any]:
        """The place behind the last step that `next` gave."""
        return dict(self._place)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind that place."""
        self._ahead.close()
        self._plan.restore({"window": int(state["window"]), "pack": int(state["pack"])})
        self._place = self._plan.state()
        self._ahead = Ahead(self._make)

    def unreadable(self) -> dict[str, float]:
        """Samples that the workers could not read since they started; all workers ask together."""
        parts = self._workers.gather(dict(self._reader.unreadable))
        reasons = sum((Counter(part) for part in parts), Counter[str]())
        counts = {f"data/unreadable/{reason}": float(num) for reason, num in reasons.items()}
        return {"data/unreadable": float(reasons.total()), **counts}

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.close()

    def _make(self) -> _Ready[B]:
        bins = self._plan.next_step()
        after = self._plan.state()
        mine = share_of(self._workers.rank, self._workers.world, bins)
        wanted = [rows for rows in mine if rows is not None or self._workers.sharded]
        samples = [[] if rows is None else self._reader.read(rows) for rows in wanted]
        uids = [picked.sample.uid for part in samples for picked in part]
        if self._merged:
            samples = [[picked for part in samples for picked in part]]
        return _Ready([self._build(part) for part in samples], uids, after)


class Fed(Generic[B]):
    """The part of an objective that its feed decides; the losses are its children's."""

    source = "data"

    def __init__(self, feed: Feed[B]) -> None:
        self._feed = feed

    def batches(self, step: int) -> list[B]:
        """This worker's micro-batches of the step."""
        del step
        return self._feed.next()

    def prepare(self, model: Any, batches: list[B], counts: dict[str, float]) -> None:
        """Nothing: a micro-batch stands for itself."""

    def consumed(self) -> list[str]:
        """Uids of the samples in the last step's micro-batches here."""
        return self._feed.uids

    def report(self) -> dict[str, float]:
        """Samples that no worker could read, by reason and in all."""
        return self._feed.unreadable()

    def state(self) -> dict[str, Any]:
        """The place in the data."""
        return self._feed.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._feed.restore(state)

    def close(self) -> None:
        """Stop reading ahead."""
        self._feed.close()

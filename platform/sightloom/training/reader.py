"""From bins of rows to packs of tensors, some steps ahead of the loop (training.md §5)."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from PIL import Image, UnidentifiedImageError

from sightloom.errors import SightloomError
from sightloom.records import InvalidRecord
from sightloom.training.corpus import Corpus, Picked
from sightloom.training.order import Rows

T = TypeVar("T")
_AHEAD: Final = 3
_UNREADABLE_SHARE: Final = 1e-3
_UNREADABLE_ALWAYS: Final = 3  # a handful never stops a short run


class Reader:
    """Reads samples; one that cannot be read is left out and counted, more than one in a thousand stop the run."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._num_read = 0
        self.unreadable: Counter[str] = Counter()

    def read(self, rows: Rows) -> list[Picked]:
        """The samples of a bin, in order.

        Raises:
            SightloomError: too many samples cannot be read.
        """
        picked = []
        for row in rows.tolist():
            self._num_read += 1
            try:
                picked.append(self._corpus.pick(row))
            except (UnidentifiedImageError, OSError, Image.DecompressionBombError, InvalidRecord, ValueError) as error:
                self.unreadable[type(error).__name__] += 1
                allowed = max(_UNREADABLE_ALWAYS, _UNREADABLE_SHARE * self._num_read)
                if self.unreadable.total() > allowed:
                    raise SightloomError(
                        f"{self.unreadable.total()} of {self._num_read} samples cannot be read, the last is row {row}: "
                        f"{type(error).__name__}: {error}",
                        "run `sightloom verify` on the shards",
                    ) from error
        return picked


class Ahead(Generic[T]):
    """Calls `make` in a thread a few steps before its results are asked for; an error comes out where its result would.

    One thread, so `make` needs no locks and sees its calls in order.
    """

    def __init__(self, make: Callable[[], T], depth: int = _AHEAD) -> None:
        self._make, self._depth = make, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._waiting: deque[Future[T]] = deque()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while len(self._waiting) < self._depth:
            self._waiting.append(self._pool.submit(self._make))
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what was made ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

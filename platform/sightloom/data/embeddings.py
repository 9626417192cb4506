"""Stored image embeddings: float16 [rows, D], normalised, one file a chunk, in the row order of its fragment.

A row that was not scored (a dialogue, a broken picture) is all zeros: its cosine with anything is 0, its length tells
it apart, and unlike NaN it spoils no product. A file that no commit names is never read.

Shapes: N rows, D features, n rows of a batch.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sightloom import storage
from sightloom.data.ledger import Group
from sightloom.data.segments import Segment, read_segments
from sightloom.data.signals.scorers import ClipSpec
from sightloom.errors import SightloomError, UserMistake

if TYPE_CHECKING:
    from sightloom.data.select.columns import Scored

BATCH = 100_000  # rows of a block: 100 MB at 512 features
READERS = 16
Array = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Part:
    """The embeddings of one chunk: rows `start` to `start + rows` of the whole."""

    uri: str
    start: int
    rows: int


@dataclass(frozen=True)
class Embeddings:
    """The stored embeddings of all rows [N] of one scorer, opened chunk by chunk as they are read."""

    num_rows: int
    parts: tuple[Part, ...]

    @property
    def dim(self) -> int:
        """D; 0 where there are no rows."""
        return load(self.parts[0]).shape[1] if self.parts else 0

    def batches(self, rows: int = BATCH) -> Iterator[tuple[int, Array]]:
        """Yield (first row, float16 [n, D]) in order, n = `rows` but for the last block."""
        for start in range(0, self.num_rows, rows):
            yield start, self.read(np.arange(start, min(self.num_rows, start + rows)))

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer] | None = None) -> Array:
        """Return the embeddings of some rows, float16 [len(rows), D], in the order of `rows`; None = of all rows.

        Only the files that hold one of the rows are opened, local ones by memory map.
        """
        wanted = np.arange(self.num_rows) if rows is None else np.asarray(rows, np.int64)
        if not len(wanted):
            return np.zeros((0, self.dim), np.float16)
        if wanted.min() < 0 or wanted.max() >= self.num_rows:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.num_rows} embeddings")
        starts = np.array([part.start for part in self.parts], np.int64)
        order = np.argsort(wanted, kind="stable")
        number = np.searchsorted(starts, wanted[order], "right") - 1
        borders = np.flatnonzero(np.diff(number, prepend=-1, append=-1))
        found = np.empty((len(wanted), self.dim), np.float16)

        def fill(low: int, high: int) -> None:
            part = self.parts[number[low]]
            content = load(part)
            if content.shape[1] != found.shape[1]:
                raise SightloomError(f"'{part.uri}' has {content.shape[1]} features, others have {found.shape[1]}")
            found[order[low:high]] = content[wanted[order[low:high]] - part.start]

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fill, borders[:-1].tolist(), borders[1:].tolist()))
        return found


def open_embeddings(scored: Scored, group: str) -> Embeddings:
    """Return the embeddings of a curation's rows [N], in its order (as `Scored.read`), by a group such as `clip_b32`.

    Raises:
        UserMistake: the group is not of this curation, or holds no embeddings.
    """
    names = [own.name for own in scored.groups]
    if group not in names:
        raise UserMistake(f"no group '{group}' was scored", f"have: {', '.join(names)}")
    place = names.index(group)
    parts: list[Part] = []
    held: dict[int, list[Part]] = {}
    for run in scored.runs:
        if run.segment not in held:
            held[run.segment] = _parts(scored.groups[place], scored.segments[place][run.segment], 0)
        own = held[run.segment]
        low, high = (bisect_left(own, row, key=lambda part: part.start) for row in (run.first, run.first + run.rows))
        parts += [Part(part.uri, run.start + part.start - run.first, part.rows) for part in own[low:high]]
    return Embeddings(scored.num_rows, tuple(part for part in parts if part.rows))


def open_group(group: Group) -> Embeddings:
    """Return the embeddings of all rows of a group in the order of its segments (a reference set, say)."""
    parts: list[Part] = []
    start = 0
    for segment in read_segments(group):
        parts += _parts(group, segment, start)
        start += segment.rows
    return Embeddings(start, tuple(part for part in parts if part.rows))


def require_embeddings(what: str, scorer: str, specs: Sequence[ClipSpec]) -> ClipSpec:
    """Return the scorer of that name; UserMistake where there is none, or where its embeddings are not stored.

    Args:
        what: who needs them, as the message begins (`semantic`, `bank 'nsfw'`).
        scorer: its name in `score.clip`.
        specs: all resolved scorers.
    """
    for number, spec in enumerate(specs):
        if spec.scorer.name == scorer and not spec.is_masked:
            if not spec.scorer.embeddings:
                size = f"{2 * spec.dim / 1000:.1f} kB a row"
                raise UserMistake(
                    f"{what} needs embeddings of '{scorer}'",
                    f"set score.clip.{number}.embeddings=true ({size}) and score again",
                )
            return spec
    names = ", ".join(spec.scorer.name for spec in specs if not spec.is_masked) or "none"
    raise UserMistake(f"{what} names no scorer '{scorer}'", f"score.clip has: {names}")


def load(part: Part) -> Array:
    """Return one file's embeddings, float16 [rows, D]; SightloomError if it is gone, cut or of another shape."""
    try:
        if storage.is_local(part.uri):
            content = np.load(storage.local_path(part.uri), mmap_mode="r", allow_pickle=False)
        else:
            content = np.load(io.BytesIO(storage.read_bytes(part.uri)), allow_pickle=False)
    except (OSError, ValueError, EOFError, UserMistake) as error:
        raise SightloomError(f"the embeddings '{part.uri}' cannot be read: {error}", _AGAIN) from error
    if content.dtype != np.float16 or content.ndim != 2 or len(content) != part.rows:
        raise SightloomError(f"'{part.uri}' is {content.dtype} {content.shape}, not float16 [{part.rows}, D]", _AGAIN)
    return content


_AGAIN = "delete its chunk's commit and its segments, and score again"


def _parts(group: Group, segment: Segment, start: int) -> list[Part]:
    found = []
    for place in segment.places:
        name = place.facts.get("embeddings")
        if name is None:
            raise UserMistake(
                f"'{group.folder}' holds no embeddings of chunk {place.chunk}", "set embeddings=true and score again"
            )
        found.append(Part(storage.join(group.folder, name), start + place.first, place.rows))
    return found

"""Rows of a corpus that an evaluation set holds too: by content, by look, by question, by embedding (data.md §10, §13).

All usable rows are compared, of any kind: a picture that is to be tested on must not be trained on in a dialogue
either. Found before duplicates are, so that a row goes for good reason only: a copy of a row that goes is judged anew.

Shapes: N rows, M rows of the evaluation set, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.duplicates import Indexes, Losers, Mask, mask_of, numbers
from sightloom.data.dedup.perceptual import MAX_FLATNESS, Hashes, first_near
from sightloom.data.dedup.references import Reference
from sightloom.data.dedup.semantic import ROUNDING, unit
from sightloom.data.embeddings import Embeddings
from sightloom.later import Later

if TYPE_CHECKING:
    import torch
else:
    torch = Later("torch")

COSINE, BITS = 0.95, 4  # where the recipe says nothing else
BLOCK = 8_192
Found = dict[int, tuple[str, bytes]]  # row -> (method, the uid in the evaluation set)


def drop_overlaps(
    parts: Callable[[], Iterable[tuple[int, pa.Table]]],
    stored: Mapping[str, Embeddings],
    references: tuple[Reference, ...],
    config: DedupConfig,
    losers: Losers,
) -> None:
    """Let the rows go that evaluation sets hold; the first method that finds one names it, the first set takes it.

    Args:
        parts: the corpus [N] as (first row, table) in order, see `overlap_columns`; read once for each set.
        stored: its embeddings, by the scorer's name.
        references: the evaluation sets.
        config: the thresholds; the hashes are always compared.
        losers: what goes.
    """
    for reference in references:
        found: Found = {}
        held = reference.rows
        for first, table in parts():
            alive = losers.alive[first : first + table.num_rows]
            for method, rows, places in (
                ("exact", *_same_value(_values(table, "sha256"), _values(held, "sha256"), alive)),
                ("perceptual", *_near(table, held, config, alive)),
                ("question", *_same_value(_asked(table), _identifying(held), alive)),
            ):
                uids = held.column("uid").take(pa.array(places)).to_pylist()
                for row, uid in zip((rows + first).tolist(), uids, strict=True):
                    found.setdefault(row, (method, uid))
        cosine = config.semantic.cosine if config.semantic is not None else COSINE
        for scorer in reference.embedded:
            found = _alike(stored[scorer], reference, scorer, cosine, losers.alive) | found
        losers.drop_overlaps(found, reference.name)


def overlap_columns(references: tuple[Reference, ...]) -> tuple[str, ...]:
    """Return the columns that `drop_overlaps` reads; texts are heavy: only where an evaluation set asks questions."""
    asks = any(pc.any(pc.not_equal(reference.rows.column("kind"), "pair")).as_py() for reference in references)
    return ("kind", "sha256", "flatness", "phash", "phash256", "thumb", *(("text",) if asks else ()))


def plain(texts: pa.Array) -> pa.Array:
    """Return texts [N] lower-cased, each run of anything but letters, marks and digits as one blank; null if none."""
    found = pc.utf8_trim(pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " "), " ")
    return pc.if_else(pc.not_equal(found, ""), found, pa.scalar(None, pa.string()))


def _values(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _asked(table: pa.Table) -> pa.Array:
    """Return the questions of dialogues as they are compared, null for pairs and where nothing is left."""
    if "text" not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    asked = pc.not_equal(_values(table, "kind"), "pair")
    return plain(pc.if_else(asked, _values(table, "text"), pa.scalar(None, pa.string())))


def _identifying(held: pa.Table) -> pa.Array:
    """Return the questions of an evaluation set, null where it asks the same of several pictures.

    "What is shown here?" names no item: there the pictures alone tell.
    """
    asked, pictures = _asked(held).to_pylist(), held.column("sha256").to_pylist()
    of_question: dict[str, set[str | None]] = {}
    for question, picture in zip(asked, pictures, strict=True):
        if question is not None:
            of_question.setdefault(question, set()).add(picture)
    return pa.array([q if q is not None and len(of_question[q]) == 1 else None for q in asked], pa.string())


def _same_value(own: pa.Array, theirs: pa.Array, alive: Mask) -> tuple[Indexes, Indexes]:
    """Return (rows, places): of each living row whose value they have the first place of it; null is no value."""
    first: dict[str, int] = {}
    for place, value in enumerate(theirs.to_pylist()):
        if value is not None:
            first.setdefault(value, place)
    found = pc.fill_null(pc.index_in(own, value_set=pa.array(list(first), pa.string())), -1).to_numpy()
    rows = np.flatnonzero((found >= 0) & alive)
    return rows, np.fromiter(first.values(), np.int64, len(first))[found[rows]]


def _near(table: pa.Table, held: pa.Table, config: DedupConfig, alive: Mask) -> tuple[Indexes, Indexes]:
    rows = np.flatnonzero(alive & _hashed(table))
    places = np.flatnonzero(_hashed(held))
    bits = config.perceptual.bits if config.perceptual is not None else BITS
    theirs = Hashes.read(held, places)
    found = np.full(table.num_rows, -1, np.int64)
    for hashes in _looks(table, rows, config.mirror):
        one, other = first_near(hashes, theirs, bits)
        found[rows[one]] = places[other]
    matched = np.flatnonzero(found >= 0)
    return matched, found[matched]


def _looks(table: pa.Table, rows: Indexes, mirror: bool) -> Iterator[Hashes]:
    """Yield the hashes of rows, those of the mirrored pictures first: a match of the picture as it is counts more."""
    if mirror:
        yield Hashes.read_mirrored(table, rows)
    yield Hashes.read(table, rows)


def _hashed(table: pa.Table) -> Mask:
    return (numbers(table, "flatness") <= MAX_FLATNESS) & mask_of(pc.is_valid(table.column("phash")))


def _alike(stored: Embeddings, reference: Reference, scorer: str, cosine: float, alive: Mask) -> Found:
    """Find the rows of which the nearest row of the evaluation set is as near as `cosine`."""
    uids, theirs_MD = reference.vectors(scorer)
    if not len(uids):
        return {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unit_MD = unit(theirs_MD, device)
    found: Found = {}
    for first, whole in stored.batches():
        for start in range(0, len(whole), BLOCK):
            part_BD = whole[start : start + BLOCK]
            nearest = (unit(part_BD, device) @ unit_MD.T).max(1)
            near = (nearest.values >= cosine - ROUNDING).cpu().numpy() & alive[first + start :][: len(part_BD)]
            for row in np.flatnonzero(near):
                found[first + start + int(row)] = ("semantic", uids[int(nearest.indices[row])].as_py())
    return found

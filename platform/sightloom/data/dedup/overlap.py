"""Rows that an evaluation set holds too: they go, whatever their score (data.md §10, §13).

An evaluation set is a corpus like any other, scored by `sightloom score`; its scores folder is the reference. A row of
the corpus matches by the bytes of its picture, by the perceptual rule, by the cosine of embeddings of one scorer, or
(dialogues) by the question, lower-cased and without punctuation, as far as the column `text` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.data.dedup.perceptual import MAX_FLATNESS, Hashes, near_pairs
from sightloom.data.ledger import Group
from sightloom.data.segments import read_segments
from sightloom.errors import UserMistake

BITS = 4
COSINE = 0.95
COLUMNS = ("status", "kind", "text", "sha256", "flatness", "phash", "phash256", "thumb")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """An evaluation set: its name, its groups of columns by name, the digests of their weights, and its chunks."""

    name: str
    base: Group
    scorers: dict[str, Group]  # digest of the weights and of the picture's cut -> group with embeddings
    chunks: tuple[str, ...]

    def read(self) -> pa.Table:
        """Return the columns of `COLUMNS` of its usable rows [m]."""
        parts = []
        for segment in read_segments(self.base):
            with storage.open_read(segment.uri) as file:
                parts.append(pq.ParquetFile(file).read(columns=list(COLUMNS)))
        table = pa.concat_tables(parts)
        return table.filter(pc.equal(table.column("status"), "ok"))


def open_reference(name: str, scores: str) -> Reference:
    """Open a scores folder (`OUT/scores`); UserMistake where it holds no compacted base columns, or several."""
    folders = _groups(scores)
    bases = [folder for folder in folders if folder.startswith("base-")]
    if len(bases) != 1:
        raise UserMistake(
            f"evaluation set '{name}': '{scores}' holds {len(bases)} groups of base columns, not one",
            "give the folder OUT/scores of one `sightloom score` of the evaluation set",
        )
    base = Group("base", bases[0].removeprefix("base-"), storage.join(scores, bases[0]))
    chunks = tuple(place.chunk for segment in read_segments(base) for place in segment.places)
    if not chunks:
        raise UserMistake(f"evaluation set '{name}': nothing is scored in '{scores}'", "run `sightloom score` on it")
    scorers: dict[str, Group] = {}
    for folder in folders:
        if folder.startswith("clip_") and folder.endswith("-emb"):
            config = storage.read_json(storage.join(scores, folder, "group.json"))["config"]
            own, _, fingerprint = folder.removesuffix("-emb").rpartition("-")
            scorers[embedding_key(config)] = Group(own, fingerprint, storage.join(scores, folder))
    return Reference(name, base, scorers, chunks)


def _groups(scores: str) -> list[str]:
    """Return the names of the groups' folders, sorted."""
    try:
        found = storage.listing(storage.join(scores, "*", "group.json"))
        return sorted(info.uri.rsplit("/", 2)[-2] for info in found)
    except UserMistake:
        return []  # nothing there


def embedding_key(config: dict[str, object]) -> str:
    """Return what two scorers must share so that their embeddings can be compared."""
    return f"{config['weights_sha256']} {config['model']} {config['crop']}"


def matches(table: pa.Table, reference: pa.Table, ok: Mask) -> Mask:
    """Tell which rows [N] of a corpus are in a reference [m], by bytes, by the perceptual rule or by the question."""
    hit = np.asarray(pc.fill_null(pc.is_in(table.column("sha256"), value_set=_set(reference.column("sha256"))), False))
    asked = ok & ~np.asarray(pc.equal(table.column("kind"), "pair"))
    questions = reference.filter(pc.not_equal(reference.column("kind"), "pair"))
    known = _set(plain(questions.column("text")))
    known = known.filter(pc.not_equal(known, ""))
    hit |= asked & np.asarray(pc.fill_null(pc.is_in(plain(table.column("text")), value_set=known), False))
    mine, theirs = (_judged(one) for one in (table, reference))
    mine = mine[ok[mine] & ~hit[mine]]
    if len(mine) and len(theirs):
        one, other = Hashes.read(reference, theirs), Hashes.read(table, mine)
        both = Hashes(*(np.concatenate([getattr(h, n) for h in (one, other)]) for n in ("coarse", "fine", "thumb")))
        better, worse = near_pairs(both, BITS)
        hit[mine[worse[(better < len(theirs)) & (worse >= len(theirs))] - len(theirs)]] = True
    return hit & ok


def plain(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts [N] lower-cased, each run of anything but letters, marks and digits as one blank."""
    return pc.utf8_trim(pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " "), " ")


def _set(values: pa.ChunkedArray) -> pa.Array:
    return pc.unique(values).drop_null()


def _judged(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the rows whose picture is not nearly empty."""
    flat = pc.fill_null(table.column("flatness"), 1.0).to_numpy(zero_copy_only=False)
    known = np.asarray(pc.is_valid(table.column("phash")))
    return np.flatnonzero((flat <= MAX_FLATNESS) & known)

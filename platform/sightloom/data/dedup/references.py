"""Evaluation sets: corpora that were scored like any other, of which no row may be in what is curated.

What their scores folder holds is all that is read: hashes, texts and embeddings, no picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import digest
from sightloom.data.dedup.config import DedupConfig, EvaluationSet
from sightloom.data.dedup.duplicates import uid_halves
from sightloom.data.embeddings import open_group
from sightloom.data.ledger import Group, committed
from sightloom.data.measure import VERSION
from sightloom.data.segments import Segment, read_segments
from sightloom.data.signals.scorers import ClipSpec
from sightloom.errors import UserMistake

COLUMNS = ("uid", "status", "kind", "text", "sha256", "flatness", "phash", "phash256", "thumb")
ANY = frozenset({"kinds", "batch"})  # of a scorer: which rows it scored and how many at once changes no embedding


@dataclass(frozen=True)
class Reference:
    """An evaluation set that fits: M rows, and the groups that hold embeddings by scorers of this recipe."""

    name: str
    bases: tuple[Group, ...]
    embedded: Mapping[str, Group]  # by the scorer's name in this recipe
    content: str  # digest of what it holds

    @cached_property
    def rows(self) -> pa.Table:
        """The columns of its rows [M], each uid once, by uid; of an unusable row the picture's digest counts."""
        tables = [_read(segment, COLUMNS) for group in self.bases for segment in read_segments(group)]
        whole = pa.concat_tables(tables)
        usable = pc.equal(whole.column("status"), "ok")
        whole = whole.filter(pc.or_(usable, pc.is_valid(whole.column("sha256"))))
        if not whole.num_rows:
            return whole
        high, low = uid_halves(whole.column("uid"))
        order = np.lexsort((low, high))
        new = np.concatenate([[True], (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)])
        return whole.take(pa.array(order[new]))

    def vectors(self, scorer: str) -> tuple[pa.Array, npt.NDArray[np.float16]]:
        """Return the uids and the embeddings, float16 [M, D], of the rows that have one."""
        group = self.embedded[scorer]
        places = {
            place.chunk: (segment, place) for base in self.bases for segment in read_segments(base)
            for place in segment.places
        }  # fmt: skip
        held: dict[str, pa.Array] = {}
        parts = []
        for chunk in _chunks(group):
            segment, place = places[chunk]
            if segment.uri not in held:
                held[segment.uri] = _read(segment, ["uid"]).column("uid").combine_chunks()
            parts.append(held[segment.uri].slice(place.first, place.rows))
        whole = open_group(group).read()
        scored = np.flatnonzero(whole.any(1))
        return pa.concat_arrays([pa.array([], pa.binary(16)), *parts]).take(pa.array(scored)), whole[scored]


def resolve_references(config: DedupConfig, specs: Sequence[ClipSpec]) -> tuple[Reference, ...]:
    """Look up the evaluation sets of a recipe; UserMistake where one is missing, unfinished or does not fit.

    Args:
        config: of deduplication.
        specs: the resolved scorers of the recipe.
    """
    own = [spec for spec in specs if spec.scorer.embeddings]
    needed = config.semantic.scorer if config.semantic is not None else None
    return tuple(_resolve(one, own, needed) for one in config.decontaminate)


def _resolve(one: EvaluationSet, own: Sequence[ClipSpec], needed: str | None) -> Reference:
    what = f"evaluation set '{one.name}'"
    described = _describe(one.scores) or _describe(storage.join(one.scores, "scores"))
    bases = {group: content for group, content in described.items() if group.name == "base"}
    if not bases:
        raise UserMistake(
            f"{what}: no scores at '{one.scores}'", "run `sightloom score` on its recipe, and give that recipe's out"
        )
    fitting = tuple(group for group, content in bases.items() if content["config"].get("version") == VERSION)
    if not fitting:
        raise UserMistake(f"{what} was measured by another version of Sightloom", "score it again")
    with_embeddings = {group: content for group, content in described.items() if _embeds(group)}
    embedded = {
        spec.scorer.name: group
        for spec in own
        for group, content in with_embeddings.items()
        if _identity(content["config"]) == _identity(spec.identity())
    }
    lacks = [needed] if needed is not None else []
    lacks += [spec.scorer.name for spec in own] if with_embeddings and not embedded else []
    for scorer in lacks:
        if scorer not in embedded:
            names = ", ".join(f"'{group.name}'" for group in with_embeddings) or "none"
            raise UserMistake(
                f"{what} has no embeddings by the weights of '{scorer}' (embeddings there: {names})",
                f"score it with the same '{scorer}' and embeddings: true",
            )
    held = [_chunks(group) for group in (*fitting, *embedded.values())]
    for group, chunks in zip((*fitting, *embedded.values()), held, strict=True):
        states = committed(group)
        whole = sum(len(state.chunks) for state in states.values()) == len(chunks) > 0
        if not whole or not all(state.complete for state in states.values()):
            raise UserMistake(f"{what} is not wholly scored ({group.name} at '{group.folder}')",
                              "run `sightloom score` on its recipe first")  # fmt: skip
    known = {chunk for chunks in held[: len(fitting)] for chunk in chunks}
    if any(set(chunks) - known for chunks in held[len(fitting) :]):
        raise UserMistake(f"{what} has embeddings of rows that were not measured there", "score it again, elsewhere")
    content = [[group.fingerprint, sorted(chunks)] for group, chunks in zip((*fitting, *embedded.values()), held,
                                                                              strict=True)]  # fmt: skip
    return Reference(one.name, fitting, embedded, digest(sorted(content)))


def _describe(folder: str) -> dict[Group, dict[str, Any]]:
    """Return the groups of a scores folder, each with what its group.json says, by folder name."""
    try:
        found = sorted(info.uri for info in storage.listing(storage.join(folder, "*", "group.json")))
    except UserMistake:
        return {}  # nothing there
    groups = {}
    for uri in found:
        content, place = storage.read_json(uri), uri.rpartition("/")[0]
        fingerprint = digest({"group": content["group"], **content["config"]})[:12]
        groups[Group(content["group"], fingerprint, place)] = content
    return groups


def _embeds(group: Group) -> bool:
    segments = read_segments(group) if group.name.startswith("clip_") else []
    return bool(segments) and all("embeddings" in place.facts for segment in segments for place in segment.places)


def _identity(config: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in config.items() if name not in ANY})


def _chunks(group: Group) -> list[str]:
    """Return the chunks of a group in the order of its rows."""
    return [place.chunk for segment in read_segments(group) for place in segment.places]


def _read(segment: Segment, columns: Sequence[str]) -> pa.Table:
    with storage.open_read(segment.uri) as file:
        return pq.ParquetFile(file).read(columns=list(columns))

"""Which rows are copies of which, by priority, so that neither arrival nor retries matter.

In order of priority a row goes if it matches one that stays (no chains). Pictures are compared among pairs only:
several questions share a picture on purpose. Records are duplicates only of equal records.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.config import DedupConfig, Perceptual
from sightloom.data.dedup.decontaminate import drop_overlaps, overlap_columns
from sightloom.data.dedup.duplicates import Duplicates, Indexes, Losers, Mask, codes_of, mask_of, numbers, priorities
from sightloom.data.dedup.perceptual import MAX_FLATNESS, Hashes, Run, mirrored_pairs, near_pairs
from sightloom.data.dedup.references import Reference
from sightloom.data.dedup.semantic import find_alike
from sightloom.data.embeddings import Embeddings

TASKS_ABOVE = 20_000_000  # rows; fewer are compared here


def find_duplicates(
    table: pa.Table,
    config: DedupConfig,
    stored: Mapping[str, Embeddings] = MappingProxyType({}),
    references: tuple[Reference, ...] = (),
    run: Run | None = None,
) -> Duplicates:
    """Find the rows that evaluation sets hold, and then the duplicates, among rows [N] with status ok.

    Args:
        table: the columns that `columns_needed` names.
        config: which duplicates go.
        stored: the embeddings of the same rows, by the scorer's name.
        references: the evaluation sets.
        run: runs a function of many buckets in parallel; taken for more than `TASKS_ABOVE` rows.
    """
    losers = Losers(mask_of(pc.equal(table.column("status"), "ok")))
    pairs = mask_of(pc.equal(table.column("kind"), "pair"))
    rank = priorities(table, config.prefer)
    drop_overlaps(table, stored, references, config, losers)
    if config.exact:
        _drop_equal(codes_of(table, "uid"), losers.alive, rank, "dup_pair", losers)
        _drop_equal(codes_of(table, "sha256"), losers.alive & pairs, rank, "dup_image", losers)
    if config.perceptual is not None:
        chosen = np.flatnonzero(losers.alive & pairs & (numbers(table, "flatness") <= MAX_FLATNESS))
        _drop_near(table, chosen, rank, config.perceptual, losers, run)
    if config.semantic is not None:
        rows = np.flatnonzero(losers.alive & pairs)
        rows = rows[np.argsort(rank[rows])]
        worse, better = find_alike(stored[config.semantic.scorer], rows, config.semantic.cosine)
        losers.drop(worse, better, "dup_semantic")
    return losers.found()


def columns_needed(config: DedupConfig, references: tuple[Reference, ...] = ()) -> tuple[str, ...]:
    """Return the columns that `find_duplicates` reads."""
    names = ["uid", "status", "kind", "src", "src_pos", "width", "height"]
    names += ["sha256"] if config.exact else []
    names += ["flatness", "phash", "phash256", "thumb"] if config.perceptual is not None else []
    names += ["phash_mirror"] if config.mirror else []
    names += overlap_columns(references) if references else ()
    names += [config.prefer] if config.prefer is not None else []
    return tuple(dict.fromkeys(names))


def _drop_equal(codes: Indexes, among: Mask, rank: Indexes, reason: str, losers: Losers) -> None:
    """Let only the best row of each code stay; -1 is no code."""
    rows = np.flatnonzero(among & (codes >= 0))
    rows = rows[np.lexsort((rank[rows], codes[rows]))]
    if not len(rows):
        return
    first = np.concatenate([[True], codes[rows][1:] != codes[rows][:-1]])
    best = rows[np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))]
    losers.drop(rows[~first], best[~first], reason)


def _drop_near(
    table: pa.Table, rows: Indexes, rank: Indexes, config: Perceptual, losers: Losers, run: Run | None
) -> None:
    """Let a picture go that is near to a better one that stays."""
    rows = rows[np.argsort(rank[rows])]
    hashes, run = Hashes.read(table, rows), run if len(rows) > TASKS_ABOVE else None
    if config.mirror:
        better, worse = mirrored_pairs(hashes, Hashes.read_mirrored(table, rows), config.bits, run)
    else:
        better, worse = near_pairs(hashes, config.bits, run)
    winner_of = np.full(len(rows), -1, np.int64)
    for one, other in zip(better.tolist(), worse.tolist(), strict=True):
        if winner_of[one] < 0 and winner_of[other] < 0:
            winner_of[other] = one
    lost = np.flatnonzero(winner_of >= 0)
    losers.drop(rows[lost], rows[winner_of[lost]], "dup_near")

"""Which rows are copies of which, by priority, so that neither arrival nor retries matter.

In order of priority a row goes if it matches one that stays (no chains). Pictures are compared among pairs only:
several questions share a picture on purpose. Records are duplicates only of equal records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.config import DedupConfig, Perceptual
from sightloom.data.dedup.decontaminate import drop_overlaps, overlap_columns
from sightloom.data.dedup.duplicates import Duplicates, Indexes, Losers, codes_of, mask_of, numbers, priorities
from sightloom.data.dedup.exact import SLICE_ROWS, Run, equal_rows, equal_rows_in_buckets, masks_of
from sightloom.data.dedup.perceptual import MAX_FLATNESS, Hashes, mirrored_pairs, near_pairs
from sightloom.data.dedup.references import Reference
from sightloom.data.dedup.semantic import find_alike
from sightloom.data.embeddings import Embeddings
from sightloom.data.select.columns import Scored

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
    drop_overlaps(lambda: [(0, table)], stored, references, config, losers)
    if config.exact:
        rank = priorities(table, config.prefer)
        losers.drop(*equal_rows(codes_of(table, "uid"), losers.alive, rank), "dup_pair")
        losers.drop(*equal_rows(codes_of(table, "sha256"), losers.alive & pairs, rank), "dup_image")
    left = losers.alive & pairs
    _drop_alike(lambda: table.filter(pa.array(left)), np.flatnonzero(left), config, stored, losers, run)
    return losers.found()


def find_duplicates_in_parts(
    scored: Scored,
    config: DedupConfig,
    stored: Mapping[str, Embeddings],
    references: tuple[Reference, ...],
    run: Run,
    folder: str,
) -> Duplicates:
    """Find what `find_duplicates` finds without holding the columns of all rows: exact copies are found in tasks.

    Of near copies and of those that say the same, only rows that are no exact copies are read.

    Args:
        scored: the rows [N].
        config: as there.
        stored: as there.
        references: as there.
        run: runs a function of many pieces of work, as Ray tasks.
        folder: for files in between, seen by all nodes.
    """
    usable, pairs = masks_of(scored, [("status", "ok"), ("kind", "pair")])
    losers = Losers(usable)
    overlapping = overlap_columns(references) if references else ()
    parts = lambda: ((first, part.read(overlapping)) for first, part in scored.parts(SLICE_ROWS))  # noqa: E731
    drop_overlaps(parts, stored, references, config, losers)
    for key, among, reason in (("uid", usable, "dup_pair"), ("sha256", pairs, "dup_image")) if config.exact else ():
        losers.drop(
            *equal_rows_in_buckets(scored, key, losers.alive & among, config.prefer, run, folder),
            reason,
        )
    left, columns = losers.alive & pairs, columns_needed(config.model_copy(update={"exact": False}))
    _drop_alike(lambda: scored.read(columns, left), np.flatnonzero(left), config, stored, losers, run)
    return losers.found()


def find_among(
    scored: Scored,
    config: DedupConfig,
    stored: Mapping[str, Embeddings],
    references: tuple[Reference, ...],
    run: Run,
    folder: str,
) -> Duplicates:
    """Find the duplicates in this process, or by tasks where the rows are more than `TASKS_ABOVE`."""
    if scored.num_rows > TASKS_ABOVE:
        return find_duplicates_in_parts(scored, config, stored, references, run, folder)
    return find_duplicates(scored.read(columns_needed(config, references)), config, stored, references)


def columns_needed(config: DedupConfig, references: tuple[Reference, ...] = ()) -> tuple[str, ...]:
    """Return the columns that `find_duplicates` reads."""
    names = ["uid", "status", "kind", "src", "src_pos", "width", "height"]
    names += ["sha256"] if config.exact else []
    names += ["flatness", "phash", "phash256", "thumb"] if config.perceptual is not None else []
    names += ["phash_mirror"] if config.mirror else []
    names += overlap_columns(references) if references else ()
    names += [config.prefer] if config.prefer is not None else []
    return tuple(dict.fromkeys(names))


def _drop_alike(
    read: Callable[[], pa.Table],
    rows: Indexes,
    config: DedupConfig,
    stored: Mapping[str, Embeddings],
    losers: Losers,
    run: Run | None,
) -> None:
    """Let near copies go and pictures that say the same, among some rows whose columns `read` returns."""
    if config.perceptual is None and config.semantic is None:
        return
    table = read()
    rank = priorities(table, config.prefer)
    if config.perceptual is not None:
        chosen = np.flatnonzero(numbers(table, "flatness") <= MAX_FLATNESS)
        worse, better = _near(table, chosen[np.argsort(rank[chosen])], config.perceptual, run)
        losers.drop(rows[worse], rows[better], "dup_near")
    if config.semantic is not None:
        best_first = rows[np.argsort(rank)]
        best_first = best_first[losers.alive[best_first]]
        worse, better = find_alike(stored[config.semantic.scorer], best_first, config.semantic.cosine)
        losers.drop(worse, better, "dup_semantic")


def _near(table: pa.Table, rows: Indexes, config: Perceptual, run: Run | None) -> tuple[Indexes, Indexes]:
    """Return (rows that go, the near and better one that stays for each) of some rows, the best first."""
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
    return rows[lost], rows[winner_of[lost]]

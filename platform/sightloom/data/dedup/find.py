"""All duplicates of a corpus, method by method: evaluation sets first, then exact, near and semantic copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.duplicates import Duplicates, Mask, find_duplicates, mask_of, priorities
from sightloom.data.dedup.overlap import COSINE, Reference, embedding_key, matches
from sightloom.data.embeddings import Embeddings, open_group

OPENED = Callable[[str], Embeddings]


def find_all(
    table: pa.Table,
    config: DedupConfig,
    opened: OPENED,
    references: Sequence[Reference] = (),
    scorers: dict[str, str] | None = None,
) -> Duplicates:
    """Find what goes among the rows of `table` [N].

    Args:
        table: the columns that `columns_needed` names.
        config: the methods.
        opened: gives the stored embeddings of all rows by the name of a group such as `clip_b32`.
        references: the evaluation sets of `config`.
        scorers: for each scorer with stored embeddings what makes them comparable, and its group.
    """
    ok = mask_of(pc.equal(table.column("status"), "ok"))
    overlap = np.full(table.num_rows, "", dtype=object)
    for reference in references:
        hit = _in_reference(table, reference, ok & (overlap == ""), opened, scorers or {})
        overlap[hit] = f"eval_overlap_{reference.name}"
    left = ok & (overlap == "")
    found = find_duplicates(table, config, left)
    if config.semantic is not None:
        found = found.joined(*_semantic(table, config, found, left, opened))
    gone = np.flatnonzero(overlap != "")
    return found.joined(gone, tuple(overlap[gone].tolist()), np.full(len(gone), -1, np.int64))


def _in_reference(table: pa.Table, reference: Reference, ok: Mask, opened: OPENED, scorers: dict[str, str]) -> Mask:
    hit = matches(table, reference.read(), ok)
    for key in sorted(scorers.keys() & reference.scorers.keys()):
        from sightloom.data.dedup.semantic import nearest_cosine  # noqa: PLC0415 - torch only where it is asked for

        others = open_group(reference.scorers[key]).read()
        for start, block in opened(scorers[key]).batches():
            rows = slice(start, start + len(block))
            hit[rows] |= ok[rows] & (nearest_cosine(block, others) >= COSINE)
    return hit


def _semantic(
    table: pa.Table, config: DedupConfig, found: Duplicates, left: Mask, opened: OPENED
) -> tuple[npt.NDArray[np.int64], tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the rows, reasons and winners among the pairs that are left."""
    from sightloom.data.dedup.semantic import semantic_pairs  # noqa: PLC0415 - torch only where it is asked for

    assert config.semantic is not None
    stored = opened(f"clip_{config.semantic.scorer}")
    alive = left & mask_of(pc.equal(table.column("kind"), "pair"))
    alive[found.rows] = False
    rows = np.flatnonzero(alive)
    rows = rows[np.argsort(priorities(table, config.prefer)[rows])]
    winners, losers = semantic_pairs(lambda which: stored.read(rows[which]), len(rows), config.semantic.cosine)
    return rows[losers], ("dup_semantic",) * len(losers), rows[winners]


def comparable(specs: Sequence[tuple[str, dict[str, object]]]) -> dict[str, str]:
    """Return the groups of scorers by what makes their embeddings comparable."""
    return {embedding_key(identity): column for column, identity in specs}

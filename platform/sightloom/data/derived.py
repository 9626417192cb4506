"""Columns derived from stored embeddings (banks, heads): chunk by chunk, committed like all others; no image is opened.

A block of chunks is one task; in it each chunk is computed by itself, so that its bits do not depend on its neighbours
and one chunk is all that is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sightloom import storage
from sightloom.data.embeddings import Part, load, require_embeddings
from sightloom.data.ledger import NOTHING, FileState, Group, commit, committed, read_commit, read_fragment
from sightloom.data.signals.banks import BankSpec, labels_uri
from sightloom.data.signals.config import ScoreConfig
from sightloom.data.signals.heads import HeadSpec, resolve_head
from sightloom.data.signals.scorers import ClipSpec
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError, UserMistake

BLOCK_ROWS = 100_000
READERS = 8
Chunk = tuple[str, bool]  # its id, and whether it is its file's last


@dataclass(frozen=True)
class Derived:
    """One group of derived columns: what computes it, and whose embeddings it reads."""

    group: Group
    source: Group
    spec: BankSpec | HeadSpec
    scorer: ClipSpec


@dataclass(frozen=True)
class Block:
    """Chunks of one group that one task computes."""

    derived: Derived
    base: Group
    chunks: tuple[Chunk, ...]


def resolve_derived(
    out: str, config: ScoreConfig, specs: Sequence[ClipSpec], clips: Sequence[Group], taken: Sequence[str]
) -> tuple[Derived, ...]:
    """Look up the banks and heads of a recipe; UserMistake where a scorer, its embeddings or weights are missing.

    Args:
        out: the curation's folder.
        config: of scoring.
        specs: the resolved scorers.
        clips: their groups.
        taken: names of the columns that there are besides.
    """
    found: list[Derived] = []
    names = set(taken)
    for bank in config.banks:
        scorer = require_embeddings(f"bank '{bank.name}'", bank.scorer, specs)
        found.append(_derived(out, BankSpec(bank, scorer.identity()), scorer, clips[specs.index(scorer)]))
    for head in config.heads:
        scorer = require_embeddings(f"head '{head.name}'", head.scorer, specs)
        resolved = resolve_head(head, scorer.dim, scorer.identity())
        found.append(_derived(out, resolved, scorer, clips[specs.index(scorer)]))
    for derived in found:
        for column in derived.spec.columns:
            if column in names:
                raise UserMistake(f"'{derived.spec.group}' makes a column '{column}', which is there", "rename it")
            names.add(column)
    return tuple(found)


def _derived(out: str, spec: BankSpec | HeadSpec, scorer: ClipSpec, source: Group) -> Derived:
    return Derived(Group.make(out, spec.group, spec.identity()), source, spec, scorer)


def blocks(every: Sequence[Derived], base: Group, files: Sequence[SourceFile], chunk_rows: int) -> list[Block]:
    """Return what is missing: of files that their scorer has wholly, the chunks that a derived group lacks."""
    embedded: dict[str, Mapping[str, FileState]] = {}
    found: list[Block] = []
    size = max(1, BLOCK_ROWS // chunk_rows)
    for derived in every:
        if derived.source.folder not in embedded:
            embedded[derived.source.folder] = committed(derived.source)
        states, done = embedded[derived.source.folder], committed(derived.group)
        missing = [
            (file.chunk_id(index), index == states[file.file_id].last)
            for file in files
            if states.get(file.file_id, NOTHING).complete
            for index in sorted(states[file.file_id].chunks - done.get(file.file_id, NOTHING).chunks)
        ]
        found += [Block(derived, base, tuple(missing[at : at + size])) for at in range(0, len(missing), size)]
    return found


def unlabelled(waiting: Sequence[Block]) -> list[tuple[ClipSpec, tuple[tuple[BankSpec, str], ...]]]:
    """Return the banks whose label features are not kept yet, with their folders, for each scorer."""
    of_scorer: dict[ClipSpec, dict[str, BankSpec]] = {}
    for block in waiting:
        spec, folder = block.derived.spec, block.derived.group.folder
        if isinstance(spec, BankSpec) and not storage.exists(labels_uri(folder)):
            of_scorer.setdefault(block.derived.scorer, {})[folder] = spec
    return [(scorer, tuple((spec, at) for at, spec in banks.items())) for scorer, banks in of_scorer.items()]


def derive(block: Block) -> int:
    """Compute and commit the chunks of a block; return their rows. Source columns come from commits alone."""
    compute = block.derived.spec.open(block.derived.group.folder)

    def one(chunk: Chunk) -> int:
        record = read_commit(block.derived.source, *chunk)
        if "embeddings" not in record:
            raise SightloomError(f"'{block.derived.source.folder}' holds no embeddings of chunk {chunk[0]}")
        part = Part(storage.join(block.derived.source.folder, record["embeddings"]), 0, record["rows"])
        columns = spread(block.derived.spec.columns, load(part), compute)
        declared = block.derived.spec.declared
        if declared is not None:
            base = read_fragment(block.base, read_commit(block.base, *chunk), ["domain"])
            columns[declared] = pa.array(
                [own or guess for own, guess in zip(base.column("domain").to_pylist(), columns[declared].to_pylist(),
                                                    strict=True)], pa.string())  # fmt: skip
        commit(block.derived.group, *chunk, pa.table(columns), {"scored": record["scored"]})
        return part.rows

    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(one, block.chunks))


def spread(types: Mapping[str, str], stored_ND: npt.NDArray[np.float16], compute: Any) -> dict[str, pa.Array]:
    """Compute columns of the rows that have an embedding; the other rows are null.

    float16 leaves a row's length off by up to 5e-4: it is made 1 again, in float32.
    """
    image_ND = stored_ND.astype(np.float32)
    length_N = np.linalg.norm(image_ND, axis=1)
    rows = np.flatnonzero(length_N > 0)
    values = compute(image_ND[rows] / length_N[rows, None])
    found: dict[str, pa.Array] = {}
    for name, kind in types.items():
        column = np.full(len(image_ND), None, object)
        column[rows] = values[name]
        found[name] = pa.array(column.tolist(), pa.float32() if kind == "float" else pa.string())
    return found

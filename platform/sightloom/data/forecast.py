"""What a curation would do and cost, before it does anything: from listings alone, or from a scored sample."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sightloom.data import fetch
from sightloom.data.fetch.lists import url_lists
from sightloom.data.ledger import committed
from sightloom.data.prepare import Prepared, prepare, refuse_other, source_files
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import jobs
from sightloom.data.segments import read_segments
from sightloom.data.sources.config import UrlSource
from sightloom.errors import UserMistake

ROW_BYTES = 100_000  # of a raw record, where nothing of the corpus was scored yet
BASE_BYTES = 300  # of a row's base columns
SCORE_BYTES = 4  # of a row and score
CORE_ROWS_PER_S = 170.0  # measured: one core at 448 x 336; 60 to 70 near one megapixel
MEASURE_CPUS = 0.75


@dataclass(frozen=True)
class Forecast:
    """What would run.

    `rows` is estimated from bytes where files are not scored yet; `row_bytes_assumed` says that nothing of the corpus
    was scored and the size of a record is a guess. `chunks_derived` counts chunks of banks and heads, which cost no
    image and hardly time. `hours` follow data.md §15 with `rows_per_s` a core.
    """

    files: int
    bytes: int
    rows: int
    row_bytes: float
    row_bytes_assumed: bool
    files_done: int
    chunks_done: int
    chunks_missing: int
    chunks_derived: int
    urls_not_fetched: int
    refusals: tuple[str, ...]
    cores: int
    rows_per_s: float
    hours: float
    object_store_mb: float
    columns_mb: float
    embeddings_mb: float
    puts: int
    gets: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def forecast(recipe: Recipe, cores: int, rows_per_s: float = CORE_ROWS_PER_S) -> Forecast:
    """Say what `curate` would do, from listings and commits alone; nothing is written.

    Args:
        recipe: as given.
        cores: that would measure.
        rows_per_s: a core, as a preview measured it.

    Raises:
        UserMistake: the recipe cannot work at all (a missing source, a wrong expression).
    """
    prepared = prepare(recipe, True)
    refusals = []
    try:
        refuse_other(prepared, None)
    except UserMistake as error:
        refusals.append(f"{error.message}; {error.hint}")
    files, urls = _files(prepared)
    states = [committed(group) for group in prepared.plan.groups]
    waiting = {job.file.file_id: job for job in jobs(files, states)}
    known = _rows_known(prepared)
    done = [file for file in files if file.file_id not in waiting]
    seen = [file for file in files if file.file_id in known]
    measured = sum(known[file.file_id] for file in seen)
    row_bytes = sum(file.size for file in seen) / measured if measured else float(ROW_BYTES)
    rows = sum(known.get(file.file_id, max(1, math.ceil(file.size / row_bytes))) for file in files)
    chunk_rows = prepared.recipe.score.chunk_rows
    missing = 0
    for job in waiting.values():
        whole = math.ceil(max(1, job.file.size / row_bytes) / chunk_rows)
        missing += max(1, whole - len(job.done_everywhere))
    done_chunks = sum(len(state.chunks) for state in states[0].values())
    has = sum(len(state.chunks) for own in prepared.derived for state in committed(own.group).values())
    derived = max(0, len(prepared.derived) * (done_chunks + missing) - has)
    groups, actors = len(prepared.plan.groups), len(prepared.specs)
    left = rows - sum(known.get(file.file_id, 0) for file in done)
    wide = sum(2 * spec.dim for spec in prepared.specs if spec.scorer.embeddings)
    return Forecast(
        files=len(files),
        bytes=sum(file.size for file in files),
        rows=rows,
        row_bytes=round(row_bytes, 1),
        row_bytes_assumed=not measured,
        files_done=len(done),
        chunks_done=done_chunks,
        chunks_missing=missing,
        chunks_derived=derived,
        urls_not_fetched=urls,
        refusals=tuple(refusals),
        cores=cores,
        rows_per_s=rows_per_s,
        hours=round(left / (3600 * cores * rows_per_s), 6),
        object_store_mb=prepared.store_bytes(int(cores / MEASURE_CPUS), min(1, actors)) / 1e6,
        columns_mb=rows * (BASE_BYTES + SCORE_BYTES * len(prepared.columns_of_scores)) / 1e6,
        embeddings_mb=rows * wide / 1e6,
        puts=2 * (missing * groups + derived) + missing * sum(spec.scorer.embeddings for spec in prepared.specs),
        gets=len(waiting) + rows + 2 * derived,
    )


def _files(prepared: Prepared) -> tuple[list[Any], int]:
    """List what can be listed now; lists of URLs that are not fetched count as such."""
    try:
        return fetch.inputs(prepared.recipe).files, 0
    except fetch.NotFetched:
        urls = sum(
            len(rows)
            for source in prepared.recipe.source
            if isinstance(source, UrlSource)
            for listed in url_lists(source)
            for _, _, rows in listed.chunks()
        )
        return [file for files in source_files(prepared.recipe) for file in files], urls


def _rows_known(prepared: Prepared) -> dict[str, int]:
    """Return the rows of each file that the segments hold."""
    rows: dict[str, int] = {}
    for segment in read_segments(prepared.plan.base):
        for place in segment.places:
            file_id = place.chunk.rpartition("-")[0]
            rows[file_id] = rows.get(file_id, 0) + place.rows
    return rows

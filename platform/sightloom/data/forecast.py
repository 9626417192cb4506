"""What a curation would do and cost, before it does anything: from listings alone, or from a scored sample."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sightloom.data import fetch
from sightloom.data.estimate import estimate_rows, rows_left
from sightloom.data.fetch.lists import url_lists
from sightloom.data.ledger import committed
from sightloom.data.prepare import Prepared, prepare, refuse_other, source_files
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import MEASURE_CPUS, jobs
from sightloom.data.segments import rows_scored
from sightloom.data.sources.chunks import SourceFile
from sightloom.data.sources.config import UrlSource
from sightloom.errors import UserMistake

BASE_BYTES = 300  # of a row's base columns
SCORE_BYTES = 4  # of a row and score
CORE_ROWS_PER_S = 170.0  # measured: one core at 448 x 336; 60 to 70 near one megapixel
OVERLAP_S = 0.03  # measured: finding text in a picture of 640 pixels at most, on one core


@dataclass(frozen=True)
class Forecast:
    """What would run.

    `rows` are those of the files and the URLs that are not fetched yet; only those of tars are estimated, from bytes:
    `rows_exact` says that none was. `row_bytes_assumed`: no tar could be looked into, the size of a record is a guess.
    `chunks_derived` counts chunks of banks and heads, which cost no image and hardly time. `hours` follow data.md §15
    with `rows_per_s` a core.
    """

    files: int
    bytes: int
    rows: int
    row_bytes: float
    row_bytes_assumed: bool
    rows_exact: bool
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


def forecast(recipe: Recipe, cores: int, rows_per_s: float | None = None) -> Forecast:
    """Say what `curate` would do, from listings and commits alone; nothing is written.

    Args:
        recipe: as given.
        cores: that would measure.
        rows_per_s: a core, as a preview measured it; None = as measured elsewhere.

    Raises:
        UserMistake: the recipe cannot work at all (a missing source, a wrong expression).
    """
    prepared = prepare(recipe, True)
    if rows_per_s is None:
        rows_per_s = round(1 / (1 / CORE_ROWS_PER_S + (OVERLAP_S if recipe.score.overlap is not None else 0.0)), 1)
    refusals = []
    try:
        refuse_other(prepared, None)
    except UserMistake as error:
        refusals.append(f"{error.message}; {error.hint}")
    files, urls = _files(prepared)
    states = [committed(group) for group in prepared.plan.groups]
    waiting = {job.file.file_id: job for job in jobs(files, states)}
    known = rows_scored(prepared.plan.base)
    found = estimate_rows(files, known)
    rows = sum(found.rows.values()) + sum(urls)
    chunk_rows = prepared.recipe.score.chunk_rows
    missing = sum(math.ceil(count / chunk_rows) for count in urls)
    for job in waiting.values():
        missing += max(1, math.ceil(found.rows[job.file.file_id] / chunk_rows) - len(job.done_everywhere))
    done_chunks = sum(len(state.chunks) for state in states[0].values())
    has = sum(len(state.chunks) for own in prepared.derived for state in committed(own.group).values())
    derived = max(0, len(prepared.derived) * (done_chunks + missing) - has)
    groups, actors = len(prepared.plan.groups), len(prepared.specs)
    left = sum(urls) + rows_left(list(waiting.values()), found)
    wide = sum(2 * spec.dim for spec in prepared.specs if spec.scorer.embeddings)
    return Forecast(
        files=len(files),
        bytes=sum(file.size for file in files),
        rows=rows,
        row_bytes=round(found.row_bytes, 1),
        row_bytes_assumed=found.row_bytes_assumed,
        rows_exact=found.exact,
        files_done=len(files) - len(waiting),
        chunks_done=done_chunks,
        chunks_missing=missing,
        chunks_derived=derived,
        urls_not_fetched=sum(urls),
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


def _files(prepared: Prepared) -> tuple[list[SourceFile], list[int]]:
    """List what can be listed now, and the URLs of each list that is not wholly fetched."""
    try:
        return fetch.inputs(prepared.recipe).files, []
    except fetch.NotFetched:
        lists = [url_lists(source) for source in prepared.recipe.source if isinstance(source, UrlSource)]
        urls = [listed.count() for found in lists for listed in found]
        return [file for files in source_files(prepared.recipe) for file in files], urls

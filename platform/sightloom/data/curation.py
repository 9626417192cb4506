"""The main path of the data side: score, drop duplicates, select, pack, report. Ray Data is the engine.

Each step leaves immutable artifacts under OUT and does only what is missing: what no commit names does not exist, and
the manifest is written last. Killed anywhere, the same command goes on and ends in the same bytes.
"""

from __future__ import annotations

import json
import pickle
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from sightloom import runtime, storage
from sightloom.config import canonical_json
from sightloom.data import artifacts
from sightloom.data.dedup.duplicates import find_duplicates
from sightloom.data.embedding import Embed
from sightloom.data.fetch import Staged, stage
from sightloom.data.ledger import committed
from sightloom.data.prepare import MANIFEST, Prepared, prepare, refuse_other, source_files
from sightloom.data.recipe import Recipe, UrlSource
from sightloom.data.report import write_report
from sightloom.data.scoring import Job, jobs, measure_chunk, read
from sightloom.data.select.choose import Decision, choose, with_counts
from sightloom.data.select.columns import Scored, load
from sightloom.data.shards.manifest import Manifest
from sightloom.data.shards.pack import ShardJob, build
from sightloom.data.shards.plan import plan_shards
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress

if TYPE_CHECKING:
    from sightloom.tracking import Tracker

READ_CPUS, MEASURE_CPUS, EMBED_CPUS = 0.25, 0.75, 0.25  # on two cores: two chunks measured beside reader and scorer


@dataclass(frozen=True)
class CurationResult:
    """What became of every row, and where the shards are."""

    manifest: str
    rows_in: int
    kept: int
    dropped: dict[str, int]
    failed: int
    shards: int
    samples_per_s: float
    report: str
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the result as every command prints it."""
        names = ("manifest", "rows_in", "kept", "dropped", "failed", "shards", "samples_per_s")
        return {name: getattr(self, name) for name in names}


def curate(
    recipe: Recipe,
    progress: Progress,
    tracker: Tracker | None = None,
    replace: bool = False,
    ray_address: str = runtime.LOCAL,
) -> CurationResult:
    """Turn a recipe's sources into verified shards.

    Args:
        recipe: what to do; `recipe.out` holds all artifacts.
        progress: where to say how far it is.
        tracker: logs one run with parameters, counts and the page, if given.
        replace: replace finished shards of another recipe under the same name.
        ray_address: used when this process has no Ray yet, once the recipe and its sources proved sound.

    Raises:
        UserMistake: the recipe cannot work as given, or would overwrite another's shards.
        SightloomError: something failed on the way; the same command goes on from the last commit.
    """
    prepared = prepare(recipe, replace)
    recipe = prepared.recipe
    listed = source_files(recipe)
    runtime.connect(ray_address)
    clock = _Clock()
    staged = _stage(recipe, progress)
    clock.lap("fetch")
    per_source = [own or fetched for own, fetched in zip(listed, staged.files, strict=True)]
    files = [file for group in per_source for file in group]
    scored = score(prepared, files, progress)
    clock.lap("score")
    fingerprints = artifacts.fingerprints(prepared, scored.chunks)
    table = with_counts(scored.table)
    duplicates = find_duplicates(table, recipe.dedup)
    artifacts.write_duplicates(recipe.out, fingerprints["dedup"], table, duplicates)
    clock.lap("dedup")
    table, decision = choose(table, duplicates, prepared.selection)
    artifacts.write_decision(recipe.out, fingerprints["select"], table, decision)
    clock.lap("select")
    manifest = pack(prepared, per_source, table, decision, staged.dropped, fingerprints, replace, progress)
    clock.lap("pack")
    with progress.step("report"):
        page = write_report(prepared, scored, table, duplicates, decision, manifest, files, clock.seconds)
    clock.lap("report")
    totals = manifest.totals
    result = CurationResult(
        manifest=manifest.uri,
        rows_in=totals.rows_in,
        kept=totals.kept,
        dropped=totals.dropped,
        failed=totals.failed,
        shards=len(manifest.shards),
        samples_per_s=round(totals.rows_in / clock.total, 2),
        report=page,
        seconds=clock.seconds,
    )
    if tracker is not None:
        artifacts.track(tracker, prepared, manifest, result.to_json(), page)
    return result


def score(prepared: Prepared, files: list[SourceFile], progress: Progress) -> Scored:
    """Measure and score every chunk that is not committed, and return the columns of all rows."""
    groups = prepared.plan.groups
    missing = jobs(files, [committed(group) for group in groups])
    with progress.step("score", unit="rows") as step:
        problems: list[dict[str, Any]] = []
        for header in _run(prepared, missing):
            if "problem" in header:
                problems.append(header)
            else:
                step.advance(header["rows"])
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            kind = UserMistake if all(problem["mistake"] for problem in problems) else SightloomError
            raise kind(problems[0]["problem"] + more, problems[0]["hint"])
        return load(files, groups, [committed(group) for group in groups])


def _run(prepared: Prepared, missing: list[Job]) -> Iterator[dict[str, Any]]:
    """Run the three stages on Ray Data; one row is one chunk. Yields the header of each finished chunk."""
    if not missing:
        return
    workers, plan = prepared.recipe.score.workers, prepared.plan
    rows = ray.data.from_items(
        [{"job": pickle.dumps(job)} for job in missing], override_num_blocks=min(len(missing), 2000)
    )
    rows.context.target_max_block_size = 1
    rows.context.target_min_block_size = 1
    rows.context.max_errored_blocks = -1
    rows.context.enable_progress_bars = False
    rows.context.print_on_execution_start = False
    rows.context.issue_detectors_config.detectors = []
    with warnings.catch_warnings():  # Ray 2.60 has no other way to say max_retries, and warns that this one will go
        warnings.simplefilter("ignore", DeprecationWarning)
        rows = rows.flat_map(read, num_cpus=READ_CPUS, max_retries=2)
        rows = rows.map(measure_chunk, fn_kwargs={"plan": plan}, num_cpus=MEASURE_CPUS, max_retries=2)
    if prepared.specs:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if workers.gpus == "auto" else workers.gpus
        actors = max(1, gpus) if workers.scorers == "auto" else workers.scorers
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        threads = max(1, cores // actors) if workers.threads == "auto" else workers.threads
        rows = rows.map(
            Embed,
            fn_constructor_args=(plan, prepared.specs, "cuda" if gpus else "cpu", threads),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=EMBED_CPUS,
            num_gpus=1 if gpus else None,
        )
    for row in rows.iter_rows():
        yield json.loads(row["header"])


def pack(
    prepared: Prepared,
    per_source: list[list[SourceFile]],
    table: pa.Table,
    decision: Decision,
    not_fetched: dict[str, int],
    fingerprints: dict[str, Any],
    replace: bool,
    progress: Progress,
) -> Manifest:
    """Build the shards that are not committed, one Ray task each, and write the manifest last."""
    recipe, folder = prepared.recipe, prepared.shard_folder
    finished = None if replace else refuse_other(prepared, fingerprints["plan"])
    if finished is not None:
        return finished
    storage.delete(storage.join(folder, MANIFEST))
    scores = (*(spec.column for spec in prepared.specs), *recipe.select.derive)
    planned = plan_shards(table.filter(pa.array(decision.keep)), recipe.pack, recipe.seed, len(scores))
    plan_folder = artifacts.write_plan(recipe.out, fingerprints["plan"], planned)
    artifacts.forget_other_plans(recipe, fingerprints["plan"])
    num_shards = 1 + max(planned.column("shard").to_pylist(), default=-1)
    ordered = sorted((file for group in per_source for file in group), key=lambda file: (file.uri, file.file_id))
    entries: dict[int, dict[str, Any]] = {}
    waiting: dict[Any, int] = {}
    task = ray.remote(num_cpus=1, max_retries=2)(build)
    with progress.step("pack", total=num_shards, unit="shards") as step:
        for number in range(num_shards):
            rows = planned.filter(pc.equal(planned.column("shard"), number))
            name = f"{recipe.name}-{number:06d}"
            commit_uri = storage.join(plan_folder, "commit", f"{name}.json")
            if storage.exists(commit_uri) and storage.exists(storage.join(folder, f"{name}.tar")):
                entries[number] = storage.read_json(commit_uri)
                step.advance()
                continue
            needed = {place: ordered[place] for place in set(rows.column("_file").to_pylist())}
            waiting[task.remote(ShardJob(name, rows, needed, scores, folder, commit_uri))] = number
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            entries[waiting.pop(ready)] = _result(ready)
            step.advance()
    manifest = artifacts.make_manifest(
        prepared, per_source, decision, not_fetched, fingerprints, [entries[number] for number in range(num_shards)]
    )
    sizes = {entry.name: entry.samples for entry in manifest.shards}
    storage.write(storage.join(folder, "sizes.json"), canonical_json(sizes))
    artifacts.delete_strangers(folder, manifest)
    storage.write(manifest.uri, canonical_json(manifest))
    return manifest


def _result(reference: Any) -> dict[str, Any]:
    """Return a task's result; our own errors come out as they were raised."""
    try:
        entry: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SightloomError):
            raise error.cause from None
        raise
    return entry


def _stage(recipe: Recipe, progress: Progress) -> Staged:
    """Download the sources that are lists of URLs, one Ray task a chunk."""
    if not any(isinstance(source, UrlSource) for source in recipe.source):
        return Staged([[] for _ in recipe.source], {})
    return stage(recipe, lambda function: ray.remote(num_cpus=0.5, max_retries=2)(function).remote, _result, progress)


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 3), now

    @property
    def total(self) -> float:
        return time.monotonic() - self._start

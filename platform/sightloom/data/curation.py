"""The main path of the data side: score, drop duplicates, select, pack, report. Ray Data is the engine.

Each step leaves immutable artifacts under OUT and does only what is missing: what no commit names does not exist, and
the manifest is written last. Killed anywhere, the same command goes on and ends in the same bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sightloom import runtime, storage
from sightloom.config import canonical_json
from sightloom.data import artifacts, decisions, engine, fetch, lineage
from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.dedup.find import find_among
from sightloom.data.derived import blocks, derive, unlabelled
from sightloom.data.embedding import encode_labels
from sightloom.data.embeddings import open_embeddings
from sightloom.data.estimate import estimate_rows, rows_left
from sightloom.data.fetch import Inputs
from sightloom.data.ledger import committed
from sightloom.data.prepare import MANIFEST, Prepared, open_out, prepare, refuse_other, source_files
from sightloom.data.recipe import Recipe
from sightloom.data.report import columns_shown, write_report
from sightloom.data.results import Clock, CurationResult, of_manifest
from sightloom.data.scoring import Job, jobs
from sightloom.data.segments import SEGMENT_ROWS, next_compactions, publish, write_segment
from sightloom.data.select.choose import choose
from sightloom.data.select.columns import FILE, Scored, open_scores
from sightloom.data.select.decision import Decision
from sightloom.data.select.rows import Rows
from sightloom.data.shards.manifest import BuiltShard, Manifest
from sightloom.data.shards.pack import TABLE_COLUMNS, ShardJob, build
from sightloom.data.shards.plan import plan_shards, shard_slices
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress, Step

if TYPE_CHECKING:
    from sightloom.tracking import Tracker

__all__ = ["CurationResult", "Settings", "curate"]

PACKED = ("uid", "src", "src_pos", "src_offset", "src_size", "payload_bytes", "image_bytes", "blake3", *TABLE_COLUMNS,
          FILE)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How one run behaves; nothing here decides what the shards hold.

    Attributes:
        replace: replace finished shards of another recipe under the same name.
        retry_failed: reasons (`*`: all) for which URLs that were not fetched are tried again; None = none.
        part: (i, n): score only the i-th of n parts of the files, i from 1.
        single_writer: do without the store's conditional puts.
        ray: the cluster to join, or `local` to start one here (if this process has none yet).
    """

    replace: bool = False
    retry_failed: tuple[str, ...] | None = None
    part: tuple[int, int] | None = None
    single_writer: bool = False
    ray: str = runtime.LOCAL


def curate(
    recipe: Recipe, progress: Progress, tracker: Tracker | None = None, settings: Settings = Settings()
) -> CurationResult:
    """Turn a recipe's sources into verified shards.

    Args:
        recipe: what to do; `recipe.out` holds all artifacts.
        progress: where to say how far it is.
        tracker: logs one run with parameters, counts and the page, if given.
        settings: of this run.

    Raises:
        UserMistake: the recipe cannot work as given, or would overwrite another's shards.
        SightloomError: something failed on the way; the same command goes on from the last commit.
    """
    clock = Clock()
    prepared = prepare(recipe, settings.replace)
    open_out(prepared, settings.single_writer)
    source_files(prepared.recipe)  # a source that cannot be listed is found before a Ray is started
    runtime.connect(settings.ray)
    inputs = fetch_urls(prepared, progress, settings)
    clock.lap("fetch")
    scored = score(prepared, inputs, progress)
    clock.lap("score")
    duplicates = dedup(prepared, scored, progress)
    clock.lap("dedup")
    decision = select(prepared, scored, duplicates, progress)
    clock.lap("select")
    manifest = pack(prepared, inputs, scored, decision, settings.replace, progress)
    clock.lap("pack")
    page = report(prepared, inputs, scored, duplicates, decision, manifest, clock.seconds, progress)
    clock.lap("report")
    result = of_manifest(manifest, page, clock)
    if tracker is not None:
        lineage.track(tracker, prepared, manifest, result.to_json(), page)
    return result


def fetch_urls(prepared: Prepared, progress: Progress, settings: Settings) -> Inputs:
    """Download the sources that are lists of URLs, one Ray task a chunk, and list all files."""
    slots = engine.host_slots(prepared.recipe)
    fetch.stage(prepared.recipe, slots, engine.run_tasks, progress, settings.retry_failed)
    return fetch.inputs(prepared.recipe)


def score(prepared: Prepared, inputs: Inputs, progress: Progress) -> Scored:
    """Measure and score every chunk that is not committed, and open the rows' columns."""
    score_missing(prepared, inputs, progress)
    return scored_rows(prepared, inputs)


def score_missing(prepared: Prepared, inputs: Inputs, progress: Progress, part: tuple[int, int] | None = None) -> None:
    """Measure and score every chunk that is not committed, and compact the fragments.

    Args:
        prepared: what to do.
        inputs: the files.
        progress: where to say how far it is.
        part: score only the i-th of n parts; what other parts miss is an error that says so.
    """
    files = inputs.files
    ours = [file for file in files if part is None or int(file.file_id, 16) % part[1] == part[0] - 1]
    waiting = _missing(prepared, ours)
    total = rows_left(waiting, estimate_rows([job.file for job in waiting], {}))
    with progress.step("score", total=total, unit="rows") as step:
        for careful in (False, True):  # a chunk whose measuring died is done once more, sample by sample
            _score_missing(prepared, ours, files, careful, step)
            lost = _missing(prepared, ours)
            if not lost:
                break
        if lost:
            names = ", ".join(f"'{job.file.uri}'" for job in lost[:3])
            raise SightloomError(
                f"{len(lost)} files could not be scored wholly: {names}", "run the same command again to go on"
            )
    derive_missing(prepared, ours, progress)
    compact(prepared, files, 0)


def derive_missing(prepared: Prepared, files: list[SourceFile], progress: Progress) -> None:
    """Compute the banks and heads that are not committed, from stored embeddings."""
    waiting = blocks(prepared.derived, prepared.plan.base, files, prepared.recipe.score.chunk_rows)
    if not waiting:
        return
    with progress.step("derive", unit="rows") as step:
        for _ in engine.run_tasks(encode_labels, unlabelled(waiting), 1.0):
            pass
        for _, rows in engine.run_tasks(derive, waiting, 1.0):
            step.advance(rows)


def scored_rows(prepared: Prepared, inputs: Inputs) -> Scored:
    """Open the rows of a finished `score`; SightloomError where it is not finished."""
    groups = prepared.groups
    return open_scores(inputs.files, groups, [committed(group) for group in groups])


def _missing(prepared: Prepared, files: list[SourceFile]) -> list[Job]:
    return jobs(files, [committed(group) for group in prepared.plan.groups])


def _score_missing(
    prepared: Prepared, ours: list[SourceFile], files: list[SourceFile], careful: bool, step: Step
) -> None:
    problems: list[dict[str, Any]] = []
    for wave in engine.run_waves(prepared, _missing(prepared, ours), careful):
        for header in wave:
            if "problem" in header:
                problems.append(header)
            else:
                step.advance(header["rows"])
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            kind = UserMistake if all(problem["mistake"] for problem in problems) else SightloomError
            raise kind(problems[0]["problem"] + more, problems[0]["hint"])
        compact(prepared, files, SEGMENT_ROWS)


def compact(prepared: Prepared, files: list[SourceFile], at_least: int) -> None:
    """Compact what waits, if it is at least so many rows; another run may do the same at the same time."""
    groups, order = prepared.groups, [file.file_id for file in files]
    while works := next_compactions(groups, [committed(group) for group in groups], order, at_least):
        written = {work: content for work, content in engine.run_tasks(write_segment, works, 1.0)}
        lost: set[str] = set()
        for work in works:
            if work.group.name in lost or not publish(work.group, written[work]):
                lost.add(work.group.name)  # another run made that number: what follows is planned anew


def dedup(prepared: Prepared, scored: Scored, progress: Progress) -> Duplicates:
    """Find the duplicates, once."""
    out, fingerprint = prepared.recipe.out, artifacts.fingerprints(prepared, scored.chunks)["dedup"]
    found = artifacts.read_duplicates(out, fingerprint)
    if found is None:
        with progress.step("dedup", total=scored.num_rows, unit="rows") as step:
            config = prepared.recipe.dedup
            compared = {name: open_embeddings(scored, f"clip_{name}") for name in prepared.compared}
            run = partial(engine.run_tasks, num_cpus=1.0)
            between = storage.join(out, "dedup", fingerprint, f"buckets-{uuid.uuid4().hex[:8]}")
            found = find_among(scored, config, compared, prepared.references, run, between)
            artifacts.write_duplicates(out, fingerprint, scored, found)
            step.advance(scored.num_rows)
    return found


def select(prepared: Prepared, scored: Scored, duplicates: Duplicates, progress: Progress) -> Decision:
    """Decide about every row, once."""
    out, fingerprint = prepared.recipe.out, artifacts.fingerprints(prepared, scored.chunks)["select"]
    decision = decisions.read_decision(out, fingerprint)
    if decision is None:
        with progress.step("select", total=scored.num_rows, unit="rows") as step:
            rows = Rows(scored.batches, scored.num_rows, prepared.selection.derive)
            decision = choose(rows, duplicates, prepared.selection, prepared.recipe.seed)
            decisions.write_decision(out, fingerprint, rows, decision, tuple(prepared.recipe.select.derive))
            step.advance(scored.num_rows)
    return decision


def pack(
    prepared: Prepared, inputs: Inputs, scored: Scored, decision: Decision, replace: bool, progress: Progress
) -> Manifest:
    """Build the shards that are not committed, one Ray task each, and write the manifest last."""
    recipe, folder = prepared.recipe, prepared.shard_folder
    fingerprints = artifacts.fingerprints(prepared, scored.chunks)
    finished = refuse_other(prepared, fingerprints["plan"], replace)
    if finished is not None:
        return finished
    scores = (*prepared.columns_of_scores, *recipe.select.derive)
    grouped = () if recipe.pack.group_by is None or recipe.pack.group_by in PACKED else (recipe.pack.group_by,)
    kept = scored.read((*PACKED, *grouped, *prepared.columns_of_scores), decision.keep)
    derived = decisions.read_derived(recipe.out, fingerprints["select"], scored.num_rows, tuple(recipe.select.derive))
    for name in recipe.select.derive:
        kept = kept.append_column(name, derived.column(name).filter(pa.array(decision.keep)))
    copies = decision.copies[decision.keep]
    if (copies > 1).any():
        kept = kept.take(pa.array(np.repeat(np.arange(len(copies)), copies)))
    planned = plan_shards(kept, recipe.pack, recipe.seed, len(scores))
    plan_folder = artifacts.write_plan(recipe.out, fingerprints["plan"], planned)
    if replace:
        storage.delete(storage.join(folder, MANIFEST))
    artifacts.forget_other_plans(recipe, fingerprints["plan"])
    encoding = None if recipe.pack.image == "keep" else recipe.pack.image
    built: dict[str, dict[str, Any] | None] = {}
    waiting: list[ShardJob] = []
    for name, rows in shard_slices(planned, recipe.name):
        commit_uri = storage.join(plan_folder, "commit", f"{name}.json")
        built[name] = None
        if storage.exists(commit_uri) and storage.exists(storage.join(folder, f"{name}.tar")):
            built[name] = storage.read_json(commit_uri)
        else:
            needed = {place: inputs.files[place] for place in set(rows.column(FILE).to_pylist())}
            waiting.append(ShardJob(name, rows, needed, scores, folder, commit_uri, encoding, recipe.score.decode))
    with progress.step("pack", total=len(built), unit="shards") as step:
        step.advance(len(built) - len(waiting))
        for job, commit in engine.run_tasks(build, waiting, 1.0):
            built[job.name] = commit
            step.advance()
    shards = [BuiltShard.model_validate(commit) for commit in built.values()]
    files = artifacts.write_foreign(folder, shards)
    manifest = lineage.make_manifest(prepared, inputs, decision, fingerprints, shards, files)
    artifacts.delete_strangers(folder, manifest)
    storage.write(manifest.uri, canonical_json(manifest))
    return manifest


def report(
    prepared: Prepared,
    inputs: Inputs,
    scored: Scored,
    duplicates: Duplicates,
    decision: Decision,
    manifest: Manifest,
    seconds: dict[str, float],
    progress: Progress,
) -> str:
    """Write the page and its figures, once; return the page's address."""
    with progress.step("report"):
        derived = tuple(prepared.recipe.select.derive)
        table = scored.read(columns_shown(prepared))
        kept = decisions.read_derived(prepared.recipe.out, manifest.fingerprints["select"], scored.num_rows, derived)
        for name in derived:
            table = table.append_column(name, kept.column(name))
        return write_report(prepared, scored, table, duplicates, decision, manifest, inputs.files, seconds)

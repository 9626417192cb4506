"""One step of a curation by itself: it reads what the steps before it committed, and says which one is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sightloom import runtime
from sightloom.data import artifacts, decisions, fetch
from sightloom.data.curation import Settings, dedup, fetch_urls, pack, report, score_missing, scored_rows, select
from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.dedup.find import TASKS_ABOVE
from sightloom.data.fetch import Inputs
from sightloom.data.ledger import committed
from sightloom.data.prepare import Prepared, open_out, prepare, refuse_other
from sightloom.data.recipe import Recipe
from sightloom.data.results import Clock, CurationResult, StepResult, of_decision, of_manifest, of_scored
from sightloom.data.scoring import jobs
from sightloom.data.select.columns import Scored
from sightloom.data.select.decision import Decision
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress

Found = TypeVar("Found")


def run_score(recipe: Recipe, progress: Progress, settings: Settings) -> StepResult:
    """Fetch what must be fetched, measure and score what is not committed."""
    clock, prepared = Clock(), _prepared(recipe, settings)
    runtime.connect(settings.ray)
    inputs = fetch_urls(prepared, progress, settings)
    clock.lap("fetch")
    score_missing(prepared, inputs, progress, settings.part)
    clock.lap("score")
    waiting = jobs(inputs.files, [committed(group) for group in prepared.groups])
    if waiting:
        raise SightloomError(
            f"this part is scored; {len(waiting)} of {len(inputs.files)} files wait for the other parts",
            "run them with --part, or once without",
        )
    return of_scored(scored_rows(prepared, inputs), inputs, clock)


def run_dedup(recipe: Recipe, progress: Progress, settings: Settings, name: str) -> StepResult:
    """Find the duplicates among scored rows; `name` is how the recipe is called in messages."""
    clock, prepared = Clock(), _prepared(recipe, settings)
    inputs, scored = _scored(prepared, name)
    if scored.num_rows > TASKS_ABOVE:
        runtime.connect(settings.ray)
    return of_scored(scored, inputs, clock, dedup(prepared, scored, progress))


def run_select(recipe: Recipe, progress: Progress, settings: Settings, name: str) -> StepResult:
    """Decide what stays."""
    clock, prepared = Clock(), _prepared(recipe, settings)
    inputs, scored = _scored(prepared, name)
    duplicates = _duplicates(prepared, scored, name)
    return of_decision(select(prepared, scored, duplicates, progress), inputs, clock)


def run_pack(recipe: Recipe, progress: Progress, settings: Settings, name: str) -> CurationResult:
    """Build the shards of what stays."""
    clock, prepared = Clock(), _prepared(recipe, settings)
    inputs, scored = _scored(prepared, name)
    decision = _decision(prepared, scored, name)
    runtime.connect(settings.ray)
    manifest = pack(prepared, inputs, scored, decision, settings.replace, progress)
    return of_manifest(manifest, "", clock)


def run_report(recipe: Recipe, progress: Progress, settings: Settings, name: str) -> CurationResult:
    """Write the page of finished shards."""
    clock, prepared = Clock(), _prepared(recipe, settings)
    inputs, scored = _scored(prepared, name)
    duplicates, decision = _duplicates(prepared, scored, name), _decision(prepared, scored, name)
    manifest = refuse_other(prepared, artifacts.fingerprints(prepared, scored.chunks)["plan"])
    if manifest is None:
        raise _first("the shards are not packed", "pack", name)
    page = report(prepared, inputs, scored, duplicates, decision, manifest, {}, progress)
    return of_manifest(manifest, page, clock)


def _prepared(recipe: Recipe, settings: Settings) -> Prepared:
    prepared = prepare(recipe, settings.replace)
    open_out(prepared, settings.single_writer)
    return prepared


def _first(problem: str, step: str, name: str) -> UserMistake:
    return UserMistake(problem, f"run this first: sightloom {step} {name}")


def _scored(prepared: Prepared, name: str) -> tuple[Inputs, Scored]:
    try:
        inputs = fetch.inputs(prepared.recipe)
        return inputs, scored_rows(prepared, inputs)
    except fetch.NotFetched as error:
        raise _first(error.message, "score", name) from error
    except UserMistake:
        raise
    except SightloomError as error:
        raise _first(error.message, "score", name) from error


def _given(found: Found | None, problem: str, step: str, name: str) -> Found:
    if found is None:
        raise _first(problem, step, name)
    return found


def _reader(prepared: Prepared, scored: Scored, step: str, read: Callable[[str, str], Found | None]) -> Found | None:
    return read(prepared.recipe.out, artifacts.fingerprints(prepared, scored.chunks)[step])


def _duplicates(prepared: Prepared, scored: Scored, name: str) -> Duplicates:
    found = _reader(prepared, scored, "dedup", artifacts.read_duplicates)
    return _given(found, "the duplicates are not known yet", "dedup", name)


def _decision(prepared: Prepared, scored: Scored, name: str) -> Decision:
    found = _reader(prepared, scored, "select", decisions.read_decision)
    return _given(found, "nothing is selected yet", "select", name)

"""Ray's part in curation: the three stages of scoring on Ray Data, and single tasks. The rest knows no Ray."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data

from sightloom.data.embedding import Embed
from sightloom.data.fetch.slots import LEASE_S, Places, RemotePlaces
from sightloom.data.prepare import Prepared
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import MEASURE_CPUS, Job, ScorePlan, measure_chunk, read
from sightloom.data.signals.scorers import ClipSpec
from sightloom.data.sources.config import UrlSource
from sightloom.errors import SightloomError, UserMistake

READ_CPUS, EMBED_CPUS = 0.25, 0.25  # with MEASURE_CPUS on two cores: two chunks measured beside reader and scorer
WAVE_FILES = 2000  # of one Dataset: millions of blocks in one are where Ray Data gets slow
SCORERS_START_S = 3600  # nothing is read before the scorers are there: it would only wait for them, in memory
AT_ONCE = 64  # single tasks that wait or run
Work = TypeVar("Work")


def run_waves(prepared: Prepared, missing: Sequence[Job], careful: bool = False) -> Iterator[Iterator[dict[str, Any]]]:
    """Score the missing chunks, at most 2,000 files at once; yields for each wave the headers of its finished chunks.

    Args:
        prepared: what to do.
        missing: the files with missing chunks.
        careful: decode each picture in a child process first (for chunks whose measuring died).
    """
    if missing:
        refuse_small_store(prepared)
    for start in range(0, len(missing), WAVE_FILES):
        yield _run(prepared, missing[start : start + WAVE_FILES], careful)


def _run(prepared: Prepared, missing: Sequence[Job], careful: bool) -> Iterator[dict[str, Any]]:
    """Run the three stages on Ray Data; one row is one chunk. Yields the header of each finished chunk."""
    plan = prepared.plan
    rows = ray.data.from_items([{"job": pickle.dumps(job)} for job in missing], override_num_blocks=len(missing))
    rows.context.target_max_block_size = 1
    rows.context.target_min_block_size = 1
    rows.context.max_errored_blocks = -1
    rows.context.enable_progress_bars = False
    rows.context.print_on_execution_start = False
    rows.context.issue_detectors_config.detectors = []
    rows.context.wait_for_min_actors_s = SCORERS_START_S
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    at_once = max(1, min(len(missing), cores // 2))  # more readers would only be more processes to hold in memory
    with warnings.catch_warnings():  # Ray 2.60 has no other way to say max_retries, and warns that this one will go
        warnings.simplefilter("ignore", DeprecationWarning)
        decode = prepared.recipe.score.workers.decode_resources or None
        rows = rows.flat_map(
            read,
            compute=ray.data.TaskPoolStrategy(size=at_once),
            num_cpus=READ_CPUS,
            max_retries=2,
            resources=decode,
        )
        rows = rows.map(
            measure_chunk,
            fn_kwargs={"plan": plan, "careful": careful},
            num_cpus=MEASURE_CPUS,
            max_retries=2,
            resources=decode,
        )
    if prepared.specs:
        gpus, actors = scorers(prepared)
        asked = prepared.recipe.score.workers.threads
        rows = rows.map(
            Scorer,
            fn_constructor_args=(plan, prepared.specs, "cuda" if gpus else "cpu",
                                 max(1, cores // actors) if asked == "auto" else asked),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=EMBED_CPUS,
            num_gpus=1 if gpus else None,
            resources=prepared.recipe.score.workers.scorer_resources or None,
        )  # fmt: skip
    try:
        for row in rows.iter_rows():
            yield json.loads(row["header"])
    except ray.exceptions.GetTimeoutError as error:
        raise SightloomError(
            f"the scorers did not start within {SCORERS_START_S / 60:.0f} minutes",
            "Ray has too few CPUs or GPUs free for score.workers; see `ray status`",
        ) from error


class Scorer(Embed):
    """An actor that scores; its process ends with it.

    Python takes seconds to take torch apart, object by object: so long the memory would be held beside the next step's.
    """

    def __init__(self, plan: ScorePlan, specs: tuple[ClipSpec, ...], device: str, threads: int) -> None:
        super().__init__(plan, specs, device, threads)
        atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def scorers(prepared: Prepared) -> tuple[int, int]:
    """Return how many GPUs and how many actors score."""
    workers = prepared.recipe.score.workers
    gpus = int(ray.cluster_resources().get("GPU", 0)) if workers.gpus == "auto" else workers.gpus
    return gpus, max(1, gpus) if workers.scorers == "auto" else workers.scorers


def refuse_small_store(prepared: Prepared) -> None:
    """Raise UserMistake where Ray's object store cannot hold the chunks that are under way at once."""
    resources = ray.cluster_resources()
    actors = scorers(prepared)[1] if prepared.specs else 0
    needed = prepared.store_bytes(int(resources.get("CPU", 1) / MEASURE_CPUS), actors)
    has = int(resources.get("object_store_memory", 0))
    if needed > has:
        raise UserMistake(
            f"scoring needs {needed / 1e6:.0f} MB of object store, Ray has {has / 1e6:.0f}",
            "start Ray with a larger object_store_memory, or make score.chunk_rows smaller",
        )


def host_slots(recipe: Recipe) -> RemotePlaces | None:
    """Return the run's slots, where there are lists of URLs to fetch."""
    configs = [source.fetch for source in recipe.source if isinstance(source, UrlSource)]
    if not configs:
        return None
    patience_s = LEASE_S + 2 * max(config.total_s for config in configs)
    return RemotePlaces(ray.remote(num_cpus=0)(Places).remote(min(config.per_host for config in configs), patience_s))


def run_tasks(function: Callable[[Work], Any], works: Iterable[Work], num_cpus: float) -> Iterator[tuple[Work, Any]]:
    """Run one task for each piece of work, a few at once; yields (work, result) as they finish.

    Our own errors come out as they were raised, and what runs is ended.
    """
    task = ray.remote(num_cpus=num_cpus, max_retries=2)(function)
    waiting: dict[Any, Work] = {}
    upcoming = iter(works)
    try:
        while True:
            while len(waiting) < AT_ONCE:
                work = next(upcoming, None)
                if work is None:
                    break
                waiting[task.remote(work)] = work
            if not waiting:
                return
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), _result(ready)
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SightloomError):
            raise error.cause from None
        raise

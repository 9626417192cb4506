"""An evaluation in MLflow: rows, result and report as a run, and its figures at the registered version, too."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from sightloom.errors import SightloomError
from sightloom.evaluation.evaluate import Evaluated
from sightloom.evaluation.result import Identity, save
from sightloom.registry import Registry
from sightloom.tracking import MlflowTracker, Tracker

EXPERIMENT = "evaluations"
_PATIENCE_S = 60.0  # for a store that is away; the result is on disk or on the screen by then
_log = logging.getLogger(__name__)


def track(uri: str, done: Evaluated) -> str:
    """Keep a finished evaluation in MLflow; returns the run's id, empty where MLflow is away: that is only a warning.

    Args:
        uri: the store's address.
        done: what was found.
    """
    try:
        return keep(MlflowTracker(uri, EXPERIMENT, _PATIENCE_S), done, lambda: model_id(Registry(uri), done.who))
    except SightloomError as error:
        _log.warning("the evaluation is not in MLflow: %s; its result is unharmed", error.message)
        return ""


def keep(tracker: Tracker, done: Evaluated, its_model: Callable[[], str]) -> str:
    """Write an evaluation as a run.

    Args:
        tracker: where.
        done: what was found.
        its_model: the id of the LoggedModel that was asked, empty where none is registered.
    """
    tags = {
        "sightloom.suite": done.result.suite, "sightloom.suite_digest": done.result.suite_digest,
        "sightloom.model": done.who.model, "sightloom.version": done.who.version, "sightloom.digest": done.who.digest,
    }  # fmt: skip
    run_id = tracker.start_run(f"evaluate {done.who.reference or done.who.model}", tags=tags)
    tracker.log_metrics(run_id, done.result.metrics(), 0, its_model())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.html").write_text(done.page)
        save(done.result, folder)
        tracker.log_file(run_id, Path(folder))
    tracker.end_run(run_id)
    return run_id


def model_id(registry: Registry, who: Identity) -> str:
    """The LoggedModel of whoever answered, if that is a registered version with the very same files; else empty."""
    if not who.reference or not who.digest:
        return ""
    try:
        version = registry.resolve(who.reference)
    except SightloomError:  # a folder that is served carries a number, too
        return ""
    return version.model_id if version.digest == who.digest else ""

"""Experiment tracking: the `Tracker` protocol, one that keeps nothing, and one on MLflow (an sqlite file or a server).

Metrics are gathered and sent as batches, because a round trip costs milliseconds on sqlite and more on a server.
While MLflow is away everything waits in an outbox, in order; a run in training never stops for its diary.
"""

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError, UserMistake
from sightloom.outbox import Outbox
from sightloom.store_address import normalized_uri

T = TypeVar("T")
Texts = Mapping[str, str] | None
Status = Literal["FINISHED", "FAILED", "KILLED"]

_log = logging.getLogger(__name__)
_FLUSH_POINTS = 500  # MLflow takes at most 1,000 metrics a request
_FLUSH_AGE_S = 5.0
_PATIENCE_S = 600.0  # what a start or an end waits for a store that is away
_KEPT_POINTS = 200_000  # what an outage may hold in memory
# whatever else goes wrong (no connection, a gateway's 5xx, a locked database) may pass
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST",
                       "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_STATE", "ENDPOINT_NOT_FOUND"})  # fmt: skip
_MAX_PARAM_CHARS = 6000  # MLflow refuses longer values
_PARAMS_PER_BATCH = 100
_DIGEST_CHARS = 36  # the width of MLflow's dataset digest


class Tracker(Protocol):
    """Where runs, their parameters, metrics and files are written down."""

    @property
    def uri(self) -> str:
        """The address of the store, empty where nothing is kept."""

    def start_run(self, name: str, parent: str | None = None, tags: Texts = None, params: Texts = None) -> str:
        """Start a run (nested below `parent`) and return its id."""

    def resume_run(self, run_id: str) -> None:
        """Set a run back to running; points up to its last logged step of a key are not written twice."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, model_id: str = "") -> None:
        """Keep one value a key at `step`; with the id of a LoggedModel they are that model's, too."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Keep parameters; the same value again is fine, another one is an error."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Copy a local file, or a folder's files, beside the run."""

    def log_input(self, run_id: str, name: str, digest: str, context: str, facts: Texts = None) -> None:
        """Name a data set that the run used, e.g. context `training`; `facts` (rows, weight, …) become its tags."""

    def flush(self) -> None:
        """Send what is still in memory, as far as the store can be reached."""

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Send what is left and close the run."""


class NullTracker:
    """Keeps nothing; for tests and runs without a diary."""

    uri = ""

    def start_run(self, name: str, parent: str | None = None, tags: Texts = None, params: Texts = None) -> str:
        """A fresh id."""
        del name, parent, tags, params
        return uuid.uuid4().hex

    def resume_run(self, run_id: str) -> None:
        """Nothing to do."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, model_id: str = "") -> None:
        """Nothing to do."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Nothing to do."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Nothing to do."""

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Nothing to do."""

    def log_input(self, run_id: str, name: str, digest: str, context: str, facts: Texts = None) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Nothing to do."""


class MlflowTracker:
    """Runs in one MLflow experiment; cheap to make again from `(uri, experiment)` in another process.

    Args:
        uri: `sqlite:///path` (made when missing; files lie in `artifacts/` beside it) or a server's http(s) address.
        experiment: made when missing.
        patience_s: how long a start or an end of a run waits for a store that is away.

    Raises:
        UserMistake: another kind of address, or the database's folder cannot be made.
        SightloomError: MLflow does not answer.
    """

    def __init__(self, uri: str, experiment: str, patience_s: float = _PATIENCE_S) -> None:
        self._uri, self._patience_s = normalized_uri(uri), patience_s
        self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            self._experiment_id = experiment_id(self._client, self._uri, experiment)
        except MlflowException as error:
            raise SightloomError(f"MLflow at {self._uri} does not answer: {error}", "is the server up?") from error
        self._points: dict[str, list[Metric]] = {}
        self._last_step: dict[str, dict[str, int]] = {}
        self._next_flush = time.monotonic() + _FLUSH_AGE_S
        self._outbox = Outbox(f"MLflow at {self._uri}", _is_away, _KEPT_POINTS)
        self.repeated_points = 0

    @property
    def lost_points(self) -> int:
        """Metrics and other notes that could not be kept: refused, or too many for the time that MLflow was away."""
        return self._outbox.lost

    @property
    def uri(self) -> str:
        """The store's address; a relative sqlite path was made absolute, so that it may travel to workers."""
        return self._uri

    def start_run(self, name: str, parent: str | None = None, tags: Texts = None, params: Texts = None) -> str:
        """Create a run in MLflow; SightloomError where it stays away or refuses."""
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        try:
            run = self._ask(lambda: self._client.create_run(self._experiment_id, run_name=name, tags=all_tags))
        except MlflowException as error:
            raise SightloomError(f"MLflow at {self._uri} starts no run: {error}", "is the server up?") from error
        run_id = str(run.info.run_id)
        if params:
            self.log_params(run_id, params)
        return run_id

    def resume_run(self, run_id: str) -> None:
        """Reopen a run; raises UserMistake when the store has none of this id."""
        try:
            keys = list(self._ask(lambda: self._client.get_run(run_id)).data.metrics)
            self._ask(lambda: self._client.update_run(run_id, status="RUNNING"))
        except MlflowException as error:
            raise UserMistake(f"run '{run_id}' is not in {self._uri}: {error}") from error
        self._last_step[run_id] = {
            key: max(point.step for point in self._ask(partial(self._client.get_metric_history, run_id, key)))
            for key in keys
        }

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, model_id: str = "") -> None:
        """Gather the values; they are sent every few seconds, at 500 points, by `flush` and by `end_run`."""
        now_ms = int(time.time() * 1000)
        seen = self._last_step.get(run_id, {})
        points = self._points.setdefault(run_id, [])
        for key, value in metrics.items():
            if step <= seen.get(key, -1):
                self.repeated_points += 1
            else:
                points.append(Metric(key, float(value), now_ms, step, model_id=model_id or None))
        if len(points) >= _FLUSH_POINTS or time.monotonic() >= self._next_flush:
            self.flush()

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters in batches; a value too long for MLflow is kept as its digest.

        Raises:
            SightloomError: the run has another value for one of these keys already.
        """
        entries = [Param(key, _param_value(value)) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_PER_BATCH):
            try:
                batch = entries[start : start + _PARAMS_PER_BATCH]
                self._ask(partial(self._client.log_batch, run_id, params=batch, synchronous=True))
            except MlflowException as error:
                raise SightloomError(f"parameters of run {run_id} were refused by MLflow: {error}") from error

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        entries = [RunTag(key, value) for key, value in tags.items()]
        self._outbox.send(partial(self._client.log_batch, run_id, tags=entries, synchronous=True), "a run's tags")

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Copy into the run's artifact store; while that is away a copy waits in a temporary folder."""
        spool = Path(tempfile.mkdtemp(prefix="sightloom-mlflow-"))
        whole, copy = local_path.is_dir(), spool / local_path.name
        (shutil.copytree if whole else shutil.copyfile)(local_path, copy)

        def deliver() -> None:
            (self._client.log_artifacts if whole else self._client.log_artifact)(run_id, str(copy), folder or None)
            shutil.rmtree(spool, ignore_errors=True)

        self._outbox.send(deliver, f"the file {local_path.name}")

    def log_input(self, run_id: str, name: str, digest: str, context: str, facts: Texts = None) -> None:
        """Log a data set; MLflow keeps 36 characters of the digest, the whole of it stands in the source."""
        dataset = Dataset(name, digest[:_DIGEST_CHARS], "local", f'{{"digest":"{digest}"}}')
        tags = [InputTag(key, value) for key, value in {"mlflow.data.context": context, **(facts or {})}.items()]
        self._outbox.send(
            partial(self._client.log_inputs, run_id, [DatasetInput(dataset, tags)]), f"the data set {name}"
        )

    def flush(self) -> None:
        """Send all gathered points; those that MLflow does not take now are kept and sent as soon as it does."""
        self._next_flush = time.monotonic() + _FLUSH_AGE_S
        for run_id, points in self._points.items():
            for start in range(0, len(points), _FLUSH_POINTS):
                batch = points[start : start + _FLUSH_POINTS]
                self._outbox.send(partial(self._log_points, run_id, batch), f"{len(batch)} metrics", len(batch))
            points.clear()

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Flush and close; an MLflow that stays away is logged, not raised: the work itself is done."""
        self.flush()
        self._outbox.send(partial(self._client.set_terminated, run_id, status), f"the end of a run ({status})")
        left = self._outbox.drain(self._patience_s)
        if left:
            _log.warning("MLflow at %s did not come back: %d notes are lost", self._uri, left)

    def _log_points(self, run_id: str, points: list[Metric]) -> None:
        self._client.log_batch(run_id, metrics=points, synchronous=True)

    def _ask(self, call: Callable[[], T]) -> T:
        return self._outbox.ask(call, self._patience_s)


def _is_away(error: Exception) -> bool:
    """Whether MLflow (or its artifact store) may do later what it did not do now."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError)


def open_tracker(uri: str | None, experiment: str) -> Tracker:
    """An `MlflowTracker`, or the `NullTracker` without an address."""
    return MlflowTracker(uri, experiment) if uri else NullTracker()


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, made when missing; of many processes that ask at once all get the same."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" if uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(name, artifact_location=folder.as_uri() if folder else None))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _param_value(value: str) -> str:
    if len(value) <= _MAX_PARAM_CHARS:
        return value
    return f"sha256:{sha256(value.encode()).hexdigest()} ({len(value)} characters)"

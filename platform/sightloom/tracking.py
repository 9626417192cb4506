"""Experiment tracking: the `Tracker` protocol, one that keeps nothing, and one on MLflow (an sqlite file or a server).

Metrics are gathered and sent as batches, because a round trip costs milliseconds on sqlite and more on a server.
While MLflow is away they stay in memory; a run in training never stops for its diary.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError, UserMistake

Status = Literal["FINISHED", "FAILED", "KILLED"]

_log = logging.getLogger(__name__)
_FLUSH_POINTS = 500  # MLflow takes at most 1,000 metrics a request
_FLUSH_AGE_S = 5.0
_RETRY_S = 30.0
_KEPT_POINTS = 200_000  # what an outage may hold in memory
_MAX_PARAM_CHARS = 6000  # MLflow refuses longer values
_PARAMS_PER_BATCH = 100
_DIGEST_CHARS = 36  # the width of MLflow's dataset digest


class Tracker(Protocol):
    """Where runs, their parameters, metrics and files are written down."""

    @property
    def uri(self) -> str:
        """The address of the store, empty where nothing is kept."""

    def start_run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """Start a run (nested below `parent`) and return its id."""

    def resume_run(self, run_id: str) -> None:
        """Set a run back to running; points up to its last logged step of a key are not written twice."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Keep one value a key at `step`."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Keep parameters; the same value again is fine, another one is an error."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Copy a local file, or a folder's files, beside the run."""

    def log_input(self, run_id: str, name: str, digest: str, context: str) -> None:
        """Name a data set that the run used, e.g. context `training`."""

    def flush(self) -> None:
        """Send what is still in memory, as far as the store can be reached."""

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Send what is left and close the run."""


class NullTracker:
    """Keeps nothing; for tests and runs without a diary."""

    uri = ""

    def start_run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """A fresh id."""
        del name, parent, tags, params
        return uuid.uuid4().hex

    def resume_run(self, run_id: str) -> None:
        """Nothing to do."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Nothing to do."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Nothing to do."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Nothing to do."""

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Nothing to do."""

    def log_input(self, run_id: str, name: str, digest: str, context: str) -> None:
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

    Raises:
        UserMistake: another kind of address, or the database's folder cannot be made.
        SightloomError: MLflow does not answer.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = normalized_uri(uri)
        self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            self._experiment_id = experiment_id(self._client, self._uri, experiment)
        except MlflowException as error:
            raise SightloomError(f"MLflow at {self._uri} does not answer: {error}", "is the server up?") from error
        self._points: dict[str, list[Metric]] = {}
        self._last_step: dict[str, dict[str, int]] = {}
        self._next_flush = time.monotonic() + _FLUSH_AGE_S
        self.repeated_points = 0
        self.lost_points = 0

    @property
    def uri(self) -> str:
        """The store's address; a relative sqlite path was made absolute, so that it may travel to workers."""
        return self._uri

    def start_run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """Create a run in MLflow."""
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        run = self._client.create_run(self._experiment_id, run_name=name, tags=all_tags)
        run_id = str(run.info.run_id)
        if params:
            self.log_params(run_id, params)
        return run_id

    def resume_run(self, run_id: str) -> None:
        """Reopen a run; raises UserMistake when the store has none of this id."""
        try:
            keys = list(self._client.get_run(run_id).data.metrics)
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            raise UserMistake(f"run '{run_id}' is not in {self._uri}: {error}") from error
        self._last_step[run_id] = {
            key: max(point.step for point in self._client.get_metric_history(run_id, key)) for key in keys
        }

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Gather the values; they are sent every few seconds, at 500 points, by `flush` and by `end_run`."""
        now_ms = int(time.time() * 1000)
        seen = self._last_step.get(run_id, {})
        points = self._points.setdefault(run_id, [])
        for key, value in metrics.items():
            if step <= seen.get(key, -1):
                self.repeated_points += 1
            else:
                points.append(Metric(key, float(value), now_ms, step))
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
                self._client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_BATCH], synchronous=True)
            except MlflowException as error:
                raise SightloomError(f"parameters of run {run_id} were refused by MLflow: {error}") from error

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def log_file(self, run_id: str, local_path: Path, folder: str = "") -> None:
        """Copy into the run's artifact store."""
        if local_path.is_dir():
            self._client.log_artifacts(run_id, str(local_path), folder or None)
        else:
            self._client.log_artifact(run_id, str(local_path), folder or None)

    def log_input(self, run_id: str, name: str, digest: str, context: str) -> None:
        """Log a data set; MLflow keeps 36 characters of the digest, the whole of it stands in the source."""
        dataset = Dataset(name, digest[:_DIGEST_CHARS], "local", f'{{"digest":"{digest}"}}')
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [tag])])

    def flush(self) -> None:
        """Send all gathered points; on failure they are kept for the next attempt, 30 s later."""
        self._next_flush = time.monotonic() + _FLUSH_AGE_S
        for run_id, points in self._points.items():
            while points:
                batch = points[:_FLUSH_POINTS]
                try:
                    self._client.log_batch(run_id, metrics=batch, synchronous=True)
                except MlflowException as error:
                    self._next_flush = time.monotonic() + _RETRY_S
                    self._trim(points)
                    _log.warning("MLflow did not take %d metrics, kept for later: %s", len(points), error)
                    return
                del points[: len(batch)]

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Flush and close; an MLflow that is away is logged, not raised: the work itself is done."""
        self.flush()
        try:
            self._client.set_terminated(run_id, status)
        except MlflowException as error:
            _log.warning("MLflow did not take the end of run %s (%s): %s", run_id, status, error)

    def _trim(self, points: list[Metric]) -> None:
        extra = len(points) - _KEPT_POINTS
        if extra > 0:
            del points[:extra]
            self.lost_points += extra


def open_tracker(uri: str | None, experiment: str) -> Tracker:
    """An `MlflowTracker`, or the `NullTracker` without an address."""
    return MlflowTracker(uri, experiment) if uri else NullTracker()


def normalized_uri(uri: str) -> str:
    """A store's address that means the same in every process; the folder of an sqlite file is made.

    Raises:
        UserMistake: neither `sqlite:///path` nor http(s), or the folder cannot be made.
    """
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    path = uri.removeprefix("sqlite:///")
    if path == uri or not path:
        raise UserMistake(f"'{uri}' is no MLflow address", "give sqlite:///path/mlflow.db or http(s)://host:port")
    file = Path(path).expanduser().absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserMistake(f"the folder of MLflow's database '{file}' cannot be made: {error.strerror}") from error
    return f"sqlite:///{file}"


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

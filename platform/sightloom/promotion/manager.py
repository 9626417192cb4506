"""The release manager: the one detached actor of a cluster that makes Serve and MLflow agree with the ledger.

It ticks every 10 seconds, every 2 while something moves, and within a second of an event in the ledger. Where MLflow or
the dashboard is away it waits: what serves goes on serving.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import RayError

from sightloom.errors import SightloomError
from sightloom.later import Later
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.rayservice import serve_of
from sightloom.promotion.windows import Windows
from sightloom.serving.meters import RayMeters
from sightloom.serving.observe import Row
from sightloom.serving.reporting import MANAGER, NAMESPACE

if TYPE_CHECKING:
    from sightloom import registry
    from sightloom.promotion import follow, ledger, ledger_gauges, tick
else:  # the process that starts the manager does not need what it will use
    registry = Later("sightloom.registry")
    follow, ledger = Later("sightloom.promotion.follow"), Later("sightloom.promotion.ledger")
    ledger_gauges, tick = Later("sightloom.promotion.ledger_gauges"), Later("sightloom.promotion.tick")

_LOOK_S: Final = 1.0
_MAX_ERROR_CHARS: Final = 1000  # a tag of MLflow's holds 5000 on Postgres
_log = logging.getLogger(__name__)
# MLflow's client tries for minutes by itself, and a tick would hang as long.
_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class ReleaseManager:
    """The actor's class: a thread ticks, calls only look or wake it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = ManagerConfig.model_validate(config)
        self._ledger = ledger.Ledger(self._config.store)
        self._windows = Windows()
        serve = serve_of(self._config)
        versions = registry.Registry(self._config.store)
        self._reconciler = tick.Reconciler(self._ledger, versions, serve, self._config, self._windows, ledger.utc_now)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._last: tick.Tick | None = None
        self._error = ""
        self._ticks = 0
        self._told, self._telling = ("", 0.0), threading.Lock()
        self._gauges = ledger_gauges.LedgerGauges(RayMeters())
        self._thread = threading.Thread(target=self._run, name="ticks", daemon=True)
        self._thread.start()

    def report(self, rows: Sequence[Row]) -> None:
        """Take what a router has seen."""
        self._windows.add(rows)

    def poke(self) -> None:
        """Tick now."""
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """How it goes: the last tick, the last error (empty after a tick that ended well), the process."""
        last = self._last.to_json() if self._last is not None else None
        return {"pid": os.getpid(), "ticks": self._ticks, "error": self._error, "last": last}

    def config(self) -> dict[str, Any]:
        """What it was started with."""
        return self._config.model_dump(mode="json", exclude_unset=True)

    def stop(self, farewell: bool = False) -> None:
        """Tick no more; what runs goes on. `farewell`: it is about to be ended, too, and the heartbeat says so."""
        self._ended.set()
        self._wake.set()
        if farewell:
            self._tell(gone=True)
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.is_set():
            head = self._round()
            self._tell()
            self._sleep(head)

    def _round(self) -> str:
        """One tick, whatever becomes of it; returns the ledger's head before it."""
        head = ""
        try:
            head = self._ledger.head()
            self._last, self._error = self._reconciler.tick(), ""
            self._gauges.tell(self._last)
        except SightloomError as error:
            self._error = error.message
            _log.warning("the tick waits: %s", error.message)
        except Exception as error:  # noqa: BLE001  the thread must not end: the actor would live on without ticks
            self._error = f"{type(error).__name__}: {error}"
            _log.exception("a tick failed")
        self._ticks += 1
        return head

    def _sleep(self, head: str) -> None:
        """Until the next tick is due, somebody pokes, or the ledger has a new head."""
        busy = self._error or self._last is None or self._last.moving
        until = time.monotonic() + (self._config.busy_s if busy else self._config.idle_s)
        if self._last is not None and self._last.events and not self._error:
            return  # its own event may have made the next move possible
        while (rest := until - time.monotonic()) > 0 and not self._ended.is_set():
            if self._wake.wait(min(rest, _LOOK_S)):
                self._wake.clear()
                return
            try:
                if self._ledger.head() != head:
                    return
            except SightloomError:
                continue  # the next tick will say it
            except Exception:  # noqa: BLE001  as above
                _log.exception("the ledger's head cannot be read")

    def _tell(self, gone: bool = False) -> None:
        """Leave a heartbeat in MLflow, where the command line looks; `gone`: the last one."""
        last = self._last
        said: dict[str, Any] = {
            "generation": 0 if last is None else last.generation,
            "settled": last is not None and last.settled,
            "models": {} if last is None else last.models,
            "error": self._error[:_MAX_ERROR_CHARS],
            "endpoint": self._config.http.address,
            "gone": gone,
        }
        now, words = time.monotonic(), json.dumps(said, sort_keys=True)
        with self._telling:
            if self._ended.is_set() and not gone:
                return
            if words == self._told[0] and now - self._told[1] < follow.HEARTBEAT_S / 3:
                return
            text = json.dumps({**said, "at": ledger.utc_now()}, sort_keys=True, ensure_ascii=False)
            try:
                self._ledger.set_tag(follow.HEARTBEAT, text, attempts=2)
                self._told = (words, now)
            except SightloomError as error:
                _log.warning("no heartbeat: %s", error.message)
            except Exception:  # noqa: BLE001  as above
                _log.exception("no heartbeat")


def start_manager(config: ManagerConfig, wait_s: float = 180.0, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Start the cluster's release manager, or find the one that runs; returns its actor handle.

    This process must be connected to the cluster's Ray (`runtime.connect`). From then on the manager PUTs Serve's
    whole document by itself: the router at `config.http`, whatever the ledger in `config.store` says is live (with an
    empty ledger the router alone, whose `/readyz` says 503), and an app a version; with a `config.writer` it patches
    KubeRay's RayService, which does the same. There is nothing else to deploy; to
    wait for the champion, poll `http://host:port/readyz`. Ray's dashboard must run (`config.dashboard`), and one
    manager is the only writer of Serve's document. It is restarted by Ray when its process dies and outlives this
    process; `stop_manager()` ends it and leaves what it deployed running. One that runs with another configuration is
    replaced.

    Args:
        config: addresses, engine and sizes.
        wait_s: until its process must answer; the imports of a busy node alone take a minute.
        meanwhile: done while its process starts.

    Raises:
        SightloomError: it did not start.
    """
    actor = (
        ray.remote(ReleaseManager)
        .options(
            name=MANAGER,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=8,
            runtime_env={**config.runtime_env, "env_vars": {**config.runtime_env.get("env_vars", {}), **_PATIENCE}},
        )
        .remote(config.model_dump(mode="json", exclude_unset=True))
    )
    meanwhile()
    if config_of(actor, wait_s) == config:
        return actor
    stop_manager()
    return start_manager(config, wait_s)


def config_of(manager: Any, wait_s: float = 180.0) -> ManagerConfig:
    """What a manager was started with.

    Raises:
        SightloomError: it does not answer.
    """
    try:
        return ManagerConfig.model_validate(ray.get(manager.config.remote(), timeout=wait_s))
    except RayError as error:
        raise SightloomError(
            f"the release manager did not start: {error}", "see the logs of the Ray cluster"
        ) from error


def find_manager() -> Any | None:
    """The actor handle of the cluster's manager, None where there is none."""
    try:
        return ray.get_actor(MANAGER, namespace=NAMESPACE)
    except ValueError:
        return None


def stop_manager(wait_s: float = 30.0, farewell: bool = False) -> bool:
    """End the cluster's manager; what it deployed goes on. Says whether there was one.

    `farewell`: what it deployed is ended next, and its last heartbeat says so; else promotions wait for a successor.
    """
    actor = find_manager()
    if actor is None:
        return False
    try:
        ray.get(actor.stop.remote(farewell), timeout=wait_s)
    except RayError as error:
        _log.warning("the manager did not stop by itself: %s", type(error).__name__)
    ray.kill(actor, no_restart=True)
    until = time.monotonic() + wait_s
    while find_manager() is not None and time.monotonic() < until:
        time.sleep(0.05)
    return True

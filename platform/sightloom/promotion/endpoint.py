"""The endpoint that follows the ledger: a cluster's release manager, started or found, and what it serves."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import HTTPOptionsSchema, LoggingConfig

from sightloom.errors import SightloomError, UserMistake
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.document import document
from sightloom.promotion.manager import config_of, find_manager, start_manager, stop_manager
from sightloom.serving.ports import address_of, check_host, check_port

START_S: Final = 300.0
_LOOK_S: Final = 0.2
_WATCH_S: Final = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Following:
    """A cluster's endpoint. `started`: by this process, which then ends it; `champions`: model to version."""

    address: str
    champions: dict[str, str]
    started: bool
    seconds: float


def follow_ledger(config: ManagerConfig) -> Following:
    """Serve what the ledger says from now on; returns when every champion answers (at once where there is none).

    This process must be connected to the cluster. A release manager that runs there already is used as it is.

    Raises:
        UserMistake: the manager that runs there was told otherwise, the port is in use, or the host is not loopback
            and there are no keys.
        SightloomError: the endpoint did not come up; what this call had started was ended.
    """
    began = time.monotonic()
    check_host(config.http.host, config.endpoint)
    found = find_manager()
    if found is None and config.writer is not None:  # Serve runs, and is KubeRay's
        manager = start_manager(config)
    elif found is None:
        check_port(config.http.host, config.http.port)
        manager = start_manager(config, meanwhile=lambda: _start_serve(config))
    else:
        manager = found
        _see_same(config, config_of(found))
    address = address_of(config.http.host, config.http.port)
    try:
        champions = _until_answered(address, manager)
    except BaseException:
        if found is None:
            end_endpoint(config)
        raise
    return Following(address, champions, found is None, time.monotonic() - began)


def watch(ended: threading.Event) -> None:
    """Wait until the event, or until the cluster has no manager any more.

    Raises:
        SightloomError: it has none.
    """
    while not ended.wait(_WATCH_S):
        if find_manager() is None:
            raise SightloomError("the cluster's release manager was ended by somebody else", "start the endpoint again")


def end_endpoint(config: ManagerConfig) -> None:
    """End the manager and what it serves; the last heartbeat says that nothing serves any more.

    What KubeRay keeps goes on: the RayService holds the last document.
    """
    if config.writer is not None:
        stop_manager()
        return
    stop_manager(farewell=True)
    serve.shutdown()


def _start_serve(config: ManagerConfig) -> None:
    """Start Serve's controller and proxy, as the document that the manager will PUT says it."""
    whole = document(config, ())
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in this process
    serve.start(
        proxy_location=whole["proxy_location"],
        http_options=HTTPOptionsSchema(**whole["http_options"]).model_dump(),
        logging_config=LoggingConfig(**whole["logging_config"]),
    )


def _see_same(asked: ManagerConfig, there: ManagerConfig) -> None:
    """The code's address may differ: a job brings its own, and finds what another one started."""
    fields = [name for name in type(asked).model_fields if name != "runtime_env"]
    other = [name for name in fields if getattr(asked, name) != getattr(there, name)]
    if other:
        listed = ", ".join(f"{name} {getattr(there, name)!r}, not {getattr(asked, name)!r}" for name in other)
        raise UserMistake(
            f"this cluster's release manager was started with another {listed}",
            "ask for the same, or end the one that runs (the job or stack that started it)",
        )


def _until_answered(address: str, manager: Any) -> dict[str, str]:
    until, said = time.monotonic() + START_S, "nothing answers yet"
    client = httpx.Client(timeout=10, trust_env=False)
    while time.monotonic() < until:
        try:
            answer = client.get(f"{address}/readyz")
            models = answer.json()["models"]
            champions = {name: its["champion"] for name, its in models.items() if its["champion"] is not None}
            if answer.status_code == 200 or not champions:
                return champions
            said = f"{address}/readyz says {models}"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            said = f"no answer at {address}: {error or type(error).__name__}"
        time.sleep(_LOOK_S)
    try:
        said = ray.get(manager.status.remote(), timeout=10)["error"] or said
    except RayError as error:
        said = f"{said}; its release manager does not answer either: {type(error).__name__}"
    raise SightloomError(f"the endpoint was not ready after {START_S:g} s: {said}", "see the logs of the Ray cluster")

"""`sightloom serve --managed`: the release manager serves what the ledger says, as long as this process lives."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from sightloom import runtime
from sightloom.cli.release import existing_store
from sightloom.errors import UserMistake
from sightloom.promotion.config import HttpConfig, ManagerConfig
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.manager import start_manager, stop_manager
from sightloom.serving.app import EndpointConfig
from sightloom.serving.deploy import Deployment, shutdown, wait_until_ready
from sightloom.serving.engines.transformers import TransformersSettings
from sightloom.serving.engines.vllm_server import VllmSettings

_READY_S = 900.0


def serve_managed(
    target: str,
    store: str,
    address: str,
    http: HttpConfig,
    endpoint: EndpointConfig,
    settings: TransformersSettings | VllmSettings,
    announce: Callable[[Deployment], None],
) -> None:
    """Start the cluster's release manager, or find it, and serve until the process is told to end.

    Args:
        target: the model whose champion is waited for; while it has none, the endpoint says 503 to all.
        store: MLflow's address.
        address: of a Ray, or `local` for one that lives as long as this process.

    Raises:
        UserMistake: a version was named (the ledger chooses), or the Ray has no dashboard, which takes what to serve.
        SightloomError: manager or champion did not come up.
    """
    model, _, alias = target.partition("@")
    if ":" in model or alias not in ("", "champion"):
        raise UserMistake(f"--managed serves what the ledger says, and '{target}' names a version", f"say: {model}")
    uri = existing_store(store)
    began = time.monotonic()
    owned = runtime.connect(address, dashboard=True) and address == runtime.LOCAL
    try:
        dashboard = runtime.dashboard()
        if not dashboard:
            raise UserMistake("this Ray has no dashboard, which takes what to serve", "start it with its dashboard")
        config = ManagerConfig(
            store=uri,
            dashboard=dashboard,
            token_file=_token_file(),
            http=http,
            endpoint=endpoint,
            engine=settings,
            gpus=settings.num_gpus if isinstance(settings, VllmSettings) else 0,
            runtime_env=_own_code(),
        )
        start_manager(config)
        here = http.address or f"http://127.0.0.1:{http.port}"
        its = Ledger(uri).read().model(model)
        if its.champion is not None:
            wait_until_ready(here, _READY_S)
        version = "none" if its.champion is None else str(its.champion)
        seconds = {"total": round(time.monotonic() - began, 2)}
        announce(Deployment(here, model, version, its.digests.get(its.champion or 0, ""), seconds))
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
    finally:
        if ray.is_initialized():
            stop_manager()
            shutdown(ray_ends=owned)
        runtime.disconnect()


def _token_file() -> str | None:
    """Where Ray's token lies, if this Ray asks for one."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return str(file) if file.is_file() else None


def _own_code() -> dict[str, Any]:
    """The code that this process runs by, where a job brought it along: replicas need the same."""
    own = ray.get_runtime_context().runtime_env
    return {name: own[name] for name in ("working_dir", "py_modules") if own.get(name)}

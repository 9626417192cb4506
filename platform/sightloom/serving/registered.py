"""A registered version's replica: its files are fetched and proved to be the pinned ones before any is loaded."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from sightloom.config import Frozen
from sightloom.errors import SightloomError
from sightloom.later import Later
from sightloom.serving.deploy import VersionReplica
from sightloom.serving.engines.settings import EngineSettings, TransformersSettings, VllmSettings
from sightloom.serving.limits import MAX_QUEUED

if TYPE_CHECKING:
    from sightloom import registry
else:  # the process that builds an app fetches nothing
    registry = Later("sightloom.registry")


class RegisteredArgs(Frozen):
    """A version, pinned by its digest. `store`: MLflow's address; `cache`: folder for downloads on every node."""

    model: str
    version: int
    digest: str
    store: str
    cache: str
    engine: EngineSettings = TransformersSettings()


class RegisteredReplica(VersionReplica):
    """One registered version's replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        asked = RegisteredArgs.model_validate(args)
        began = time.monotonic()
        folder = fetch(asked)
        super().__init__(str(folder), asked.model, str(asked.version), args["engine"])
        self._parts["fetch"] = time.monotonic() - began  # and every file verified


def fetch(asked: RegisteredArgs) -> Path:
    """The version's folder, verified; what is cached already needs no MLflow.

    Raises:
        SightloomError: MLflow names another digest, or a file is not the one that was registered.
    """
    versions, cache = registry.Registry(asked.store), Path(asked.cache).expanduser()
    if (cached := versions.cached(asked.digest, cache)) is not None:
        return cached
    version = versions.resolve(f"{asked.model}:{asked.version}")
    if version.digest != asked.digest:
        raise SightloomError(
            f"version {version.reference} has the digest {version.digest[:12]}… in MLflow, and the ledger pins "
            f"{asked.digest[:12]}…",
            "its tag was changed after it was evaluated: it is not loaded",
        )
    return versions.materialize(version, cache)


def registered_replica(asked: RegisteredArgs) -> Application:
    """A registered version's app. vLLM queues by itself, so its replica takes more at once."""
    engine = asked.engine.model_dump(mode="json", exclude_unset=True) | {"kind": asked.engine.kind}
    at_once = 256 if isinstance(asked.engine, VllmSettings) else 16
    deployed = Registered.options(user_config={}, max_ongoing_requests=at_once)
    return deployed.bind({**asked.model_dump(mode="json"), "engine": engine})


Registered = serve.deployment(
    name="engine",
    max_queued_requests=MAX_QUEUED,
    max_constructor_retry_count=2,  # a file that was changed stays changed
)(RegisteredReplica)

"""Import paths for Serve's own configuration files (RayService, `serve deploy`, the release manager's document)."""

from pathlib import Path

from pydantic import Field
from ray.serve import Application

from sightloom.config import Frozen
from sightloom.serving import clip_replica
from sightloom.serving.clip import ClipSettings
from sightloom.serving.config import EndpointConfig
from sightloom.serving.deploy import version_replica
from sightloom.serving.engines.settings import EngineSettings, TransformersSettings
from sightloom.serving.registered import RegisteredArgs, registered_replica
from sightloom.serving.router import Router
from sightloom.serving.routes import Routes


class VersionArgs(Frozen):
    """One version's app. `folder`: the model's folder, at the same path on every node that may hold a replica."""

    folder: str
    model: str = "sightloom"
    version: str = "1"
    engine: EngineSettings = TransformersSettings()


class RouterArgs(Frozen):
    """The router's app. Serve listens beyond loopback in a cluster, so `endpoint.keys` names a key file there."""

    endpoint: EndpointConfig
    routes: Routes = Field(
        default=Routes(), description="the first ones; Serve's `user_config` changes them without a restart"
    )
    clips: tuple[str, ...] = Field(default=(), description="names of the open_clip models that have apps")


def version_app(args: VersionArgs) -> Application:
    """`sightloom.serving.builders:version_app`: an engine behind a handle."""
    return version_replica(Path(args.folder), args.model, args.version, args.engine)


def registered_app(args: RegisteredArgs) -> Application:
    """`sightloom.serving.builders:registered_app`: the same, of a registered version that is fetched and verified."""
    return registered_replica(args)


def router_app(args: RouterArgs) -> Application:
    """`sightloom.serving.builders:router_app`: the endpoint, which asks the version apps."""
    routes = args.routes.model_dump(mode="json")
    return Router.options(user_config=routes).bind(args.endpoint.model_dump(mode="json"), args.clips)


def clip_app(args: ClipSettings) -> Application:
    """`sightloom.serving.builders:clip_app`: an open_clip model; its app's name is `clip.app_name`'s."""
    return clip_replica.clip_app(args)

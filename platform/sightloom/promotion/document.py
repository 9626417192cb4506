"""Serve's whole declarative document, rendered from what shall run: pure.

Weights are the router's `user_config`, so that a PUT moves them without restarting anything.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.live import ROUTER
from sightloom.serving.clip import app_name as clip_app_name
from sightloom.serving.routes import Routes

_BUILDERS: Final = "sightloom.serving.builders"
_DRAIN_S: Final = 60.0  # requests in flight of an app that goes
_HEALTH_S: Final = 2.0
# In every application too: Serve writes the document's own into each, and what is live would differ from what was PUT.
LOGGING: Final = {"log_level": "WARNING", "enable_access_log": False}


def app_name(model: str, version: int) -> str:
    """`sightloom-v13`."""
    return f"{model}-v{version}"


def version_app(config: ManagerConfig, model: str, version: int, digest: str) -> dict[str, Any]:
    """One version's application."""
    args = {
        "model": model,
        "version": version,
        "digest": digest,
        "store": config.store,
        "cache": config.cache,
        "engine": config.engine.model_dump(mode="json", exclude_unset=True) | {"kind": config.engine.kind},
    }
    deployment = {
        "name": "engine",
        "num_replicas": config.replicas,
        "max_surge_percent": 100,  # without it the update of one replica stalls requests
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "health_check_period_s": _HEALTH_S,
        "ray_actor_options": {"num_cpus": config.cpus, "num_gpus": config.gpus},
    }
    return {
        "name": app_name(model, version),
        "route_prefix": None,
        "import_path": f"{_BUILDERS}:registered_app",
        "runtime_env": config.runtime_env,
        "args": args,
        "deployments": [deployment],
        "logging_config": LOGGING,
    }


def router_app(config: ManagerConfig, routes: Routes) -> dict[str, Any]:
    """The router's application."""
    deployment = {
        "name": ROUTER,
        "num_replicas": config.routers,
        "user_config": routes.model_dump(mode="json"),
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "ray_actor_options": {"num_cpus": 0},
    }
    return {
        "name": ROUTER,
        "route_prefix": "/",
        "import_path": f"{_BUILDERS}:router_app",
        "runtime_env": config.runtime_env,
        "args": {"endpoint": config.endpoint.model_dump(mode="json"), "clips": sorted(config.clips)},
        "deployments": [deployment],
        "logging_config": LOGGING,
    }


def clip_apps(config: ManagerConfig) -> dict[str, dict[str, Any]]:
    """The applications of the open_clip models, by name."""
    deployment = {
        "name": "clip",
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "health_check_period_s": _HEALTH_S,
        "ray_actor_options": {"num_cpus": config.cpus},
    }
    return {
        clip_app_name(name): {
            "name": clip_app_name(name),
            "route_prefix": None,
            "import_path": f"{_BUILDERS}:clip_app",
            "runtime_env": config.runtime_env,
            "args": settings.model_dump(mode="json", exclude_unset=True),
            "deployments": [deployment],
            "logging_config": LOGGING,
        }
        for name, settings in config.clips.items()
    }


def document(config: ManagerConfig, applications: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of `PUT /api/serve/applications/`."""
    return {
        "proxy_location": config.proxies,
        "http_options": {"host": config.http.host, "port": config.http.port},
        "logging_config": LOGGING,
        "applications": [dict(application) for application in applications],
    }


def rayservice_patch(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The same document as a merge patch of a RayService, which KubeRay applies in place."""
    return {"spec": {"serveConfigV2": yaml.safe_dump(dict(whole), sort_keys=False)}}

"""A serve job as a RayService: the apps of `sightloom serve --on ray`, kept alive by KubeRay."""

import argparse
from typing import Any, Final, NoReturn

from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.renderers.kuberay import as_yaml, cluster_spec, named
from sightloom.cluster.renderers.submission import SECRETS_FOLDER, Placed, runtime_env
from sightloom.errors import UserMistake
from sightloom.serving.clip import ClipSettings, app_name, clip_settings
from sightloom.serving.engines.settings import engine_settings

_BUILDERS: Final = "sightloom.serving.builders"


def rayservice(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """A RayService for a job of kind serve whose model is a folder that every pod has.

    Raises:
        UserMistake: another kind, a model that is no absolute folder, no key file, or an option of another kind of
            serving.
    """
    if spec.kind != "serve":
        raise UserMistake(f"job '{spec.name}' is of kind {spec.kind}", "only a job of kind serve becomes a RayService")
    body = {
        "serveConfigV2": as_yaml(serve_config(spec, placed)),
        "rayClusterConfig": cluster_spec(spec, placed),
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": named(spec), "spec": body}


def serve_config(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """Serve's configuration file (ray.serve.schema.ServeDeploySchema)."""
    asked = _options(spec)
    app = f"{asked.name}-v1"
    routes = {"generation": 1, "models": {asked.name: {"live": [{"version": "1", "app": app}]}}}
    routes["models"][asked.name]["aliases"] = {"champion": "1"}  # type: ignore[index]
    shared: dict[str, Any] = {"runtime_env": found} if (found := runtime_env(spec, placed)) else {}
    endpoint = {"keys": asked.keys, "media": {"allow_domains": asked.allow_domain}, "log_requests": asked.log_requests}
    version = {"folder": asked.target, "version": "1", "engine": _engine(spec, asked)}
    clips = _clips(spec, asked)
    router: dict[str, Any] = {"endpoint": endpoint, "routes": routes} | ({"clips": sorted(clips)} if clips else {})
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": asked.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {"name": app, "route_prefix": None, "import_path": f"{_BUILDERS}:version_app", "args": version, **shared},
            *(
                {
                    "name": app_name(name),
                    "route_prefix": None,
                    "import_path": f"{_BUILDERS}:clip_app",
                    "args": its.model_dump(mode="json", exclude_unset=True),
                    **shared,
                }
                for name, its in clips.items()
            ),
            {
                "name": "router",
                "route_prefix": "/",
                "import_path": f"{_BUILDERS}:router_app",
                "args": router,
                **shared,
            },
        ],
    }


def _clips(spec: JobSpec, asked: argparse.Namespace) -> dict[str, ClipSettings]:
    """The open_clip models beside the version; a local one lies in every pod, too."""
    found = clip_settings(asked.clip)
    for name, its in found.items():
        if its.folder is not None and not its.folder.is_absolute():
            raise UserMistake(
                f"job '{spec.name}': '{its.folder}' of --clip {name} is no absolute folder", "mount it in every pod"
            )
    return found


def _engine(spec: JobSpec, asked: argparse.Namespace) -> dict[str, Any]:
    """The engine's settings, as `sightloom serve` reads them from the same words."""
    settings = engine_settings(
        asked.engine, asked.engine_python, asked.engine_key, asked.engine_arg, asked.engine_gpus, asked.dtype,
        asked.device,
    )  # fmt: skip
    room = max((group.gpus for group in spec.resources.workers), default=0)
    if asked.engine_gpus > room:
        raise UserMistake(
            f"job '{spec.name}': its engine reserves {asked.engine_gpus:g} GPUs, and no node of its workers has more "
            f"than {room}",
            "see resources.workers in the job's file",
        )
    return settings.model_dump(mode="json", exclude_unset=True) | {"kind": settings.kind}


class _Words(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserMistake(
            f"a RayService cannot be made of these argv: {message}",
            "it knows --name --port --keys --allow-domain --log-requests --engine… --clip --dtype --device",
        )


def _options(spec: JobSpec) -> argparse.Namespace:
    """The words of `sightloom serve` that a RayService has a place for."""
    words = _Words(add_help=False, allow_abbrev=False)
    words.add_argument("target")
    words.add_argument("--name", default="sightloom")
    words.add_argument("--port", type=int, default=8000)
    words.add_argument("--host")  # of a server of its own; the proxies of a RayService listen in their pods
    words.add_argument("--on", choices=["ray"], required=True)
    words.add_argument("--follow", action="store_true")
    words.add_argument("--keys")
    words.add_argument("--allow-domain", action="append", default=[])
    words.add_argument("--log-requests", action="store_true")
    words.add_argument("--engine", default="transformers")
    words.add_argument("--engine-python")
    words.add_argument("--engine-key")
    words.add_argument("--engine-arg", action="append", default=[])
    words.add_argument("--engine-gpus", type=float, default=0)
    words.add_argument("--clip", action="append", default=[])
    words.add_argument("--dtype", default="float32")
    words.add_argument("--device", default="cpu")
    asked = words.parse_args(list(spec.argv))
    if asked.follow:
        raise UserMistake(
            f"job '{spec.name}': a RayService serves a folder that every pod has, and does not follow the ledger",
            "e.g. --set 'argv=[/data/models/NAME, --on, ray, --keys, /run/secrets/keys.json]'",
        )
    if not asked.target.startswith("/"):
        raise UserMistake(f"job '{spec.name}': '{asked.target}' is no absolute folder", "mount the model in every pod")
    if not asked.keys:
        raise UserMistake(
            f"job '{spec.name}': a RayService listens in the cluster's network, and there is no key file",
            f"--keys {SECRETS_FOLDER}/keys.json, and secrets: {{SIGHTLOOM_KEYS: {{file: keys.json}}}}",
        )
    return asked

"""`sightloom serve`: a model folder or a registered version behind an OpenAI-compatible endpoint."""

import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from sightloom import runtime
from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Ray, Store
from sightloom.cli.managed import serve_managed
from sightloom.config import validate
from sightloom.errors import UserMistake
from sightloom.promotion.config import HttpConfig
from sightloom.registry import Registry
from sightloom.serving.app import EndpointConfig
from sightloom.serving.clip import ClipSettings
from sightloom.serving.deploy import Deployment, check_host, check_port, deploy, shutdown
from sightloom.serving.engines.transformers import TransformersSettings
from sightloom.serving.engines.vllm_server import VllmSettings
from sightloom.serving.local import serve_here
from sightloom.serving.media import MediaLimits
from sightloom.tracking import normalized_uri


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("serve")
    def serve(
        target: Annotated[str, typer.Argument(help="A model folder, or a registered model: NAME@champion, NAME:13.")],
        port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
        host: Annotated[str, typer.Option(help="Address to listen on; without keys only loopback.")] = "127.0.0.1",
        name: Annotated[str, typer.Option(help="The model's name in requests.")] = "sightloom",
        on: Annotated[
            str, typer.Option(help="'process' = one process; 'ray' = a router and a replica on Ray Serve.")
        ] = ("process"),
        managed: Annotated[
            bool,
            typer.Option("--managed", help="Serve what the ledger says: champion, canary, rollbacks; with --on ray."),
        ] = False,
        store: Store = DEFAULT_STORE,
        keys: Annotated[
            str | None, typer.Option(help="Key file; without it everybody on this machine may ask.")
        ] = None,
        allow_domain: Annotated[list[str] | None, typer.Option(help="Fetch pictures from this domain, too.")] = None,
        log_requests: Annotated[bool, typer.Option("--log-requests", help="A JSON line a request on stderr.")] = False,
        traces: Annotated[
            str | None,
            typer.Option(
                help="OTLP collector that requests' spans go to, e.g. http://127.0.0.1:4318.",
                envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
        ] = None,
        engine: Annotated[
            str, typer.Option(help="transformers, vllm, or the URL of a vLLM server that you run.")
        ] = "transformers",
        engine_python: Annotated[
            str | None, typer.Option(help="Python of an environment with vLLM, where this one has none.")
        ] = None,
        engine_key: Annotated[str | None, typer.Option(help="File with the key of the vLLM server at a URL.")] = None,
        engine_arg: Annotated[
            list[str] | None, typer.Option(help="An option of vLLM, e.g. tensor-parallel-size=2; may be repeated.")
        ] = None,
        engine_gpus: Annotated[float, typer.Option(help="GPUs that vLLM's replica reserves with --on ray.", min=0)] = 0,
        clip: Annotated[
            list[str] | None,
            typer.Option(help="NAME=local-dir:FOLDER or NAME=MODEL,PRETRAINED: an open_clip model for embeddings."),
        ] = None,
        dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto with vLLM.")] = "float32",
        device: Annotated[str, typer.Option(help="cpu or cuda; vLLM finds its device itself.")] = "cpu",
        ray: Ray = runtime.LOCAL,
        as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
    ) -> None:
        """Serve a model until Ctrl-C. The page at / is a playground; OpenAI clients use /v1.

        sightloom serve out/model
        sightloom serve sightloom@champion --store sqlite:///out/mlflow.db --on ray
        sightloom serve sightloom --store http://mlflow:5000 --on ray --managed
        """
        if on not in ("process", "ray"):
            raise UserMistake(f"--on {on} is not known", "use --on process or --on ray")
        media = MediaLimits(allow_domains=tuple(allow_domain or ()))
        endpoint = EndpointConfig(keys=keys, media=media, log_requests=log_requests, traces=traces)
        settings = engine_settings(engine, engine_python, engine_key, engine_arg or [], engine_gpus, dtype, device)
        clips = clip_settings(clip or [])

        def announce(running: Deployment) -> None:
            console.emit(as_result(running), as_json, lambda page: show(page, running))

        check_host(host, endpoint)
        check_port(host, port)
        if managed:
            if on != "ray" or clips:
                raise UserMistake("--managed serves on Ray alone, and no open_clip models", "--on ray, without --clip")
            serve_managed(target, store, ray, HttpConfig(host=host, port=port), endpoint, settings, announce)
            return
        folder, model, version = find(target, name, store)

        if on == "process":
            serve_here(folder, model, version, port, host, endpoint, settings, announce, clips)
            return
        owned = runtime.connect(ray) and ray == runtime.LOCAL
        try:
            announce(deploy(folder, model, version, port, host, endpoint, settings, clips))
            ended = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: ended.set())
            ended.wait()
        finally:
            shutdown(ray_ends=owned)
            runtime.disconnect()


def engine_settings(
    engine: str, python: str | None, key_file: str | None, extra: list[str], gpus: float, dtype: str, device: str
) -> TransformersSettings | VllmSettings:
    """The engine's settings from the command line.

    Raises:
        UserMistake: options that do not belong together, or an unknown one.
    """
    if engine == "transformers":
        if python or key_file or extra or gpus:
            raise UserMistake("--engine-python, -key, -arg and -gpus belong to vLLM", "add --engine vllm")
        return TransformersSettings(dtype=dtype, device=device)
    given: dict[str, Any] = {"kind": engine, "dtype": dtype, "python": python, "num_gpus": gpus}
    if engine.startswith(("http://", "https://")):
        given |= {"kind": "vllm", "url": engine, "key_file": key_file}
    elif engine != "vllm":
        raise UserMistake(f"--engine {engine} is not known", "use transformers, vllm, or a vLLM server's URL")
    pairs = [argument.partition("=") for argument in extra]
    given["extra_args"] = {name: yaml.safe_load(value) if sign else True for name, sign, value in pairs}
    return validate(VllmSettings, given, "command line")


def clip_settings(given: list[str]) -> dict[str, ClipSettings]:
    """The open_clip models of the command line.

    Raises:
        UserMistake: one has no name.
    """
    found: dict[str, ClipSettings] = {}
    for text in given:
        name, sign, model = text.partition("=")
        if not (name and sign and model):
            raise UserMistake(f"--clip {text} has no name", "write NAME=local-dir:FOLDER or NAME=MODEL,PRETRAINED")
        architecture, _, pretrained = model.partition(",")
        found[name] = ClipSettings(model=architecture, pretrained=pretrained or None)
    return found


def find(target: str, name: str, store: str) -> tuple[Path, str, str]:
    """The folder, name and version of what is to be served; a registered model's files are verified.

    Raises:
        UserMistake: neither a folder nor a registered model.
    """
    if Path(target).is_dir():
        return Path(target), name, "1"
    if os.sep in target or not any(mark in target for mark in "@:"):
        raise UserMistake(
            f"'{target}' is no folder", "give a model folder, or a registered model such as sightloom@champion"
        )
    registry = Registry(normalized_uri(store))
    version = registry.resolve(target)
    cache = Path.home() / ".cache" / "sightloom" / "models"
    return registry.materialize(version, cache), version.name, str(version.version)


def as_result(running: Deployment) -> dict[str, Any]:
    """The verb's JSON."""
    return {
        "address": running.address,
        "api": running.api,
        "model": running.model,
        "version": running.version,
        "digest": running.digest,
        "seconds": running.seconds,
        "pid": os.getpid(),
    }


def show(page: Console, running: Deployment) -> None:
    """What people read."""
    page.print(f"[bold]{running.model}[/] version {running.version}, ready after {running.seconds['total']:.1f} s")
    page.print(f"  playground  {running.address}/")
    page.print(f"  OpenAI API  {running.api}")
    page.print(f'\nnext: sightloom ask "What is in the picture?" --image photo.png --url {running.address}')
    page.print("      Ctrl-C ends it")

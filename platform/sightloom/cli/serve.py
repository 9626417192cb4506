"""`sightloom serve`: a model folder or a registered version behind an OpenAI-compatible endpoint."""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sightloom import runtime
from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, EngineArg, EngineKey, EnginePython, Ray, Store
from sightloom.errors import UserMistake
from sightloom.later import Later
from sightloom.serving.clip import clip_settings
from sightloom.serving.config import EndpointConfig
from sightloom.serving.engines.settings import engine_settings
from sightloom.serving.media import MediaLimits
from sightloom.serving.ports import check_host, check_port
from sightloom.store_address import normalized_uri

if TYPE_CHECKING:
    from sightloom import registry
    from sightloom.promotion import config as promotion
    from sightloom.promotion import endpoint as following
    from sightloom.serving import deploy, local
else:  # mistakes are told before engines load, and a process that follows the ledger need not hold one
    registry = Later("sightloom.registry")
    deploy, local = Later("sightloom.serving.deploy"), Later("sightloom.serving.local")
    promotion, following = Later("sightloom.promotion.config"), Later("sightloom.promotion.endpoint")


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
        follow: Annotated[
            bool,
            typer.Option("--follow", help="Serve what the ledger says, now and later: with --on ray, NAME@champion."),
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
        engine_python: EnginePython = None,
        engine_key: EngineKey = None,
        engine_arg: EngineArg = None,
        engine_gpus: Annotated[float, typer.Option(help="GPUs that vLLM's replica reserves with --on ray.", min=0)] = 0,
        clip: Annotated[
            list[str] | None,
            typer.Option(help="NAME=local-dir:FOLDER or NAME=MODEL,PRETRAINED: an open_clip model for embeddings."),
        ] = None,
        rayservice: Annotated[
            str | None,
            typer.Option(metavar="NAMESPACE/NAME", help="With --follow in a cluster of KubeRay's: whose RayService."),
        ] = None,
        dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto with vLLM.")] = "float32",
        device: Annotated[str, typer.Option(help="cpu or cuda; vLLM finds its device itself.")] = "cpu",
        ray: Ray = runtime.LOCAL,
        as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
    ) -> None:
        """Serve a model until Ctrl-C. The page at / is a playground; OpenAI clients use /v1.

        With --follow the cluster's release manager is started, or found: promotions move what answers, without a gap.

        sightloom serve out/model
        sightloom serve sightloom@champion --store sqlite:///out/mlflow.db --on ray
        """
        if on not in ("process", "ray"):
            raise UserMistake(f"--on {on} is not known", "use --on process or --on ray")
        media = MediaLimits(allow_domains=tuple(allow_domain or ()))
        endpoint = EndpointConfig(keys=keys, media=media, log_requests=log_requests, traces=traces)
        settings = engine_settings(engine, engine_python, engine_key, engine_arg or [], engine_gpus, dtype, device)
        clips = clip_settings(clip or [])
        check_host(host, endpoint)
        if follow:
            check_follow(target, name, on, ray)
            config = promotion.ManagerConfig(
                store=normalized_uri(store),
                http=promotion.HttpConfig(host=host, port=port),
                endpoint=endpoint,
                engine=settings,
                gpus=engine_gpus,
                clips={clip_name: its.absolute() for clip_name, its in clips.items()},
                **(under_kuberay(rayservice) if rayservice else {}),
            )
            follow_until_asked(config, ray, as_json)
            return
        if rayservice:
            raise UserMistake("--rayservice means nothing without --follow", "add --follow, or leave it out")
        check_port(host, port)
        folder, model, version = find(target, name, store)

        def announce(running: deploy.Deployment) -> None:
            console.emit(as_result(running), as_json, lambda page: show(page, running))

        if on == "process":
            local.serve_here(folder, model, version, port, host, endpoint, settings, announce, clips)
            return
        owned = runtime.connect(ray) and ray == runtime.LOCAL
        try:
            announce(deploy.deploy(folder, model, version, port, host, endpoint, settings, clips))
            asked_to_end().wait()
        finally:
            deploy.shutdown(ray_ends=owned)
            runtime.disconnect()


def check_follow(target: str, name: str, on: str, ray: str) -> None:
    """See that the options mean something beside `--follow`.

    Raises:
        UserMistake: one does not.
    """
    if not target.endswith("@champion") or name not in ("sightloom", target.removesuffix("@champion")):
        raise UserMistake(
            f"--follow serves what the ledger says, not '{target}' under a name of its own",
            "give NAME@champion, and no --name",
        )
    if on != "ray" or ray == runtime.LOCAL:
        raise UserMistake(
            "--follow needs a Ray with a dashboard", "sightloom up has both; or --on ray --ray HOST:6379 (a job: auto)"
        )


def under_kuberay(rayservice: str) -> dict[str, Any]:
    """What differs where KubeRay keeps Serve: its operator hands on the document, and every pod takes requests.

    Raises:
        UserMistake: no RayService is named.
    """
    namespace, _, name = rayservice.partition("/")
    if not (namespace and name):
        raise UserMistake(f"--rayservice {rayservice} names no RayService", "write NAMESPACE/NAME")
    return {"writer": promotion.RayServiceWriter(namespace=namespace, name=name), "proxies": "EveryNode"}


def follow_until_asked(config: "promotion.ManagerConfig", ray: str, as_json: bool) -> None:
    """Have a cluster's release manager serve, until this process is asked to end; one that was found goes on.

    Raises:
        UserMistake, SightloomError: it cannot be joined, or the endpoint does not come up.
    """
    runtime.connect(ray)
    ended = asked_to_end()
    try:
        code = runtime.code_of_this_job()
        update = {"dashboard": runtime.dashboard(), "token_file": token_file(), "runtime_env": code}
        config = config.model_copy(update=update)
        there = following.follow_ledger(config)
        facts = {"address": there.address, "api": f"{there.address}/v1", "champions": there.champions,
                 "started": there.started, "seconds": round(there.seconds, 2), "pid": os.getpid()}  # fmt: skip
        console.emit(facts, as_json, lambda page: show_following(page, facts))
        try:
            following.watch(ended)
        finally:
            if there.started:
                following.end_endpoint(config)
    finally:
        runtime.disconnect()


def token_file() -> str | None:
    """The file with Ray's token, where the cluster asks for one; found as Ray itself finds it."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return str(file) if file.is_file() else None


def asked_to_end() -> threading.Event:
    """Set by Ctrl-C and by SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


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
    versions = registry.Registry(normalized_uri(store))
    version = versions.resolve(target)
    cache = Path.home() / ".cache" / "sightloom" / "models"
    return versions.materialize(version, cache), version.name, str(version.version)


def as_result(running: "deploy.Deployment") -> dict[str, Any]:
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


def show(page: Console, running: "deploy.Deployment") -> None:
    """What people read."""
    page.print(f"[bold]{running.model}[/] version {running.version}, ready after {running.seconds['total']:.1f} s")
    show_address(page, running.address)


def show_following(page: Console, facts: dict[str, Any]) -> None:
    """What people read of an endpoint that follows the ledger."""
    champions = ", ".join(f"{name} version {version}" for name, version in facts["champions"].items())
    page.print(f"[bold]{champions or 'no champion yet: sightloom promote'}[/], after {facts['seconds']:.1f} s")
    if not facts["started"]:
        page.print("  this cluster's release manager ran already, and goes on when this ends")
    show_address(page, facts["address"])


def show_address(page: Console, address: str) -> None:
    """Where it answers, and what comes next."""
    page.print(f"  playground  {address}/")
    page.print(f"  OpenAI API  {address}/v1")
    page.print(f'\nnext: sightloom ask "What is in the picture?" --image photo.png --url {address}')
    page.print("      Ctrl-C ends it")

"""The verbs promote, rollback and abort."""

import getpass
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Store
from sightloom.config import load
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.errors import UserMistake
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.suites import Suite, read_suite
from sightloom.progress import terminal_progress
from sightloom.promotion import release
from sightloom.promotion.asking import Exam, InProcess, Pinned
from sightloom.promotion.canary import AT_ONCE, CanaryPlan
from sightloom.promotion.events import Who
from sightloom.promotion.evidence import Evidence, check, examine, gather
from sightloom.promotion.follow import Heartbeat, follow, manager, settle
from sightloom.promotion.ledger import Ledger
from sightloom.registry import Registry, Version
from sightloom.store_address import normalized_uri
from sightloom.tracking import MlflowTracker

MODEL = "sightloom"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # by itself MLflow's client tries for four minutes
Reason = Annotated[str, typer.Option(help="Why; kept in the ledger.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Cache = Annotated[
    str,
    typer.Option(help="Folder for downloaded versions.", envvar="SIGHTLOOM_CACHE", show_default="~/.cache/sightloom"),
]
Wait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is live.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("abort")(abort)


def promote(
    version: Annotated[str, typer.Argument(help="Version, e.g. 13 or sightloom:13.", show_default=False)],
    gate: Annotated[str, typer.Option(help="Rules of the gate.")] = "pipelines/gates/release.yaml",
    plan: Annotated[
        str, typer.Option(help="Canary plan (YAML: steps, auto, rules).", show_default="shadow, 1 %, 10 %, 50 %")
    ] = "",
    manifest: Annotated[str, typer.Option(help="manifest.json of curated shards.", show_default=False)] = "",
    reason: Reason = "",
    override: Annotated[
        bool,
        typer.Option(
            "--override",
            help="Promote whatever the gate says, and a challenger without the rest of its canary; needs --reason.",
        ),
    ] = False,
    no_wait: Wait = False,
    unserved: Annotated[
        bool,
        typer.Option("--unserved", help="Nothing serves from this store, whatever a release manager said last."),
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            help="Where the version is asked once it is up there, by its name; SIGHTLOOM_API_KEY with the scope pin.",
            envvar="SIGHTLOOM_ENDPOINT",
            show_default="where the release manager serves; else a process of its own",
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask and decide, but leave the ledger alone.")] = False,
    store: Store = DEFAULT_STORE,
    cache: Cache = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the gate.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a version beside the champion, ask the gate, try it on a share of the traffic, make it champion.

    Where no release manager ever served from the store, or the last one was ended, the version is champion at once;
    for one that is silent is waited. Exit codes: 1 it stays silent, 3 the gate was not passed, 4 another event came
    first, 5 the canary was taken back.
    """
    if override and not reason:
        raise UserMistake("an override needs a reason", "--override --reason '…'")
    uri = existing_store(store)
    registry, ledger = Registry(uri), Ledger(uri)
    asked = load(CanaryPlan, plan) if plan else None
    found = registry.resolve(reference(version))
    beat = None if unserved or dry_run else manager(ledger, terminal_progress())
    canary = AT_ONCE if dry_run else _plan(beat, asked)
    its = ledger.read().model(found.name)
    if its.challenger == found.version and not dry_run:  # it was evaluated before its trial began
        result = release.go_on(registry, ledger, found, Who(actor(), reason), override, canary)
    else:
        check(its, found)
        before, who = len(ledger.read().lines), Who(actor(), reason)
        exam = read_exam(gate, manifest, set_ or [], cache)
        address = "" if dry_run else endpoint or _served_at(beat)
        evidence = judge(registry, ledger, found, exam, cache, address, who)
        if not (dry_run or unserved) and beat is None:  # a manager may have come while the gate was asked
            canary = _plan(manager(ledger, terminal_progress()), asked)
        if dry_run:
            result = release.as_release(ledger.read(), found, before, evidence.decision, evidence.run_id)
        else:
            result = release.promote(registry, ledger, found, evidence, who, override, canary)
            result = replace(result, num_lines=before)
    if not (dry_run or no_wait or unserved):
        result = _finished(ledger, found, result, as_json)
    console.emit(result.to_json(), as_json, lambda screen: _show_release(screen, result, dry_run))


def read_exam(gate: str, manifest: str, overrides: list[str], cache: str = "") -> Exam:
    """The gate's rules, its suite and the questions; what baselines answer is kept in the cache."""
    rules = load(GateRules, gate, overrides)
    suite = load(Suite, Path(gate).parent / rules.suites)
    examples = read_suite(suite, manifest or None, GENERATORS)
    return Exam(rules, suite, examples, cache_folder(cache) / "answers")


def judge(
    registry: Registry,
    ledger: Ledger,
    version: Version,
    exam: Exam,
    cache: str,
    endpoint: str,
    who: Who,
) -> Evidence:
    """Gather the evidence: behind the endpoint where there is one, else in a process of its own."""
    tracker, progress = MlflowTracker(registry.uri, "gates"), terminal_progress()
    here = InProcess(registry, cache_folder(cache))
    if not endpoint:
        state = ledger.read().model(version.name)
        return gather(registry, state, version, exam, here, tracker, progress)
    pinned = Pinned(endpoint, os.environ.get("SIGHTLOOM_API_KEY", ""), here)
    return examine(registry, ledger, version, exam, pinned, who, tracker, progress)


def _served_at(beat: Heartbeat | None) -> str:
    """Where the release manager of this store serves; empty where there is none."""
    if beat is None:
        return ""
    if not beat.endpoint:
        raise UserMistake(
            "the release manager serves on every address of its node, and none of them is known here",
            "name one that this machine reaches: --endpoint http://HOST:PORT, or SIGHTLOOM_ENDPOINT",
        )
    return beat.endpoint


def rollback(
    model: Annotated[str, typer.Argument(help="Model.")] = MODEL,
    reason: Reason = "",
    no_wait: Wait = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again, without asking the gate."""
    if not reason:
        raise UserMistake("a rollback needs a reason", "sightloom rollback --reason '…'")
    uri = existing_store(store)
    ledger = Ledger(uri)
    result = release.rollback(Registry(uri), ledger, model, Who(actor(), reason))
    if not no_wait:
        settle(ledger, ledger.read())
    console.emit(result.to_json(), as_json, lambda screen: _show_release(screen, result, False))


def abort(
    version: Annotated[
        str, typer.Argument(metavar="[MODEL | MODEL:VERSION]", help="Model, or the one version of it.")
    ] = MODEL,
    reason: Reason = "",
    no_wait: Wait = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Take a version back that is under evaluation, passed or on trial; the champion is unchanged.

    By default the challenger; where there is none, the newest version under evaluation, else the newest that passed.
    """
    if not reason:
        raise UserMistake("an abort needs a reason", "sightloom abort --reason '…'")
    uri = existing_store(store)
    ledger = Ledger(uri)
    model, _, number = reference(version).partition(":")
    if number and not number.isdigit():
        raise UserMistake(f"'{version}' is no model version", "name:13, or name")
    result = release.abort(Registry(uri), ledger, model, Who(actor(), reason), int(number) if number else None)
    if not no_wait:
        settle(ledger, ledger.read())
    console.emit(result.to_json(), as_json, lambda screen: _show_abort(screen, result))


def existing_store(store: str) -> str:
    """A store's address; an sqlite file must be there: reading must not make an empty one."""
    path = store.removeprefix("sqlite:///")
    if path != store and not Path(path).expanduser().is_file():
        raise UserMistake(f"no MLflow store at '{path}'", "give --store sqlite:///path, or MLFLOW_TRACKING_URI")
    be_patient()
    return normalized_uri(store)


def be_patient() -> None:
    """See that MLflow's client says within seconds that its server is away."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)


def cache_folder(cache: str) -> Path:
    """The folder for downloaded versions."""
    return Path(cache).expanduser() if cache else Path.home() / ".cache" / "sightloom" / "versions"


def reference(version: str) -> str:
    """`13` is version 13 of the model `sightloom`."""
    return f"{MODEL}:{version}" if version.isdigit() else version


def actor() -> str:
    """Who acts."""
    return os.environ.get("SIGHTLOOM_ACTOR") or getpass.getuser()


def _plan(beat: Heartbeat | None, asked: CanaryPlan | None) -> CanaryPlan:
    """The plan that was asked for, or the usual one; at once where nothing serves."""
    if beat is not None:
        return asked if asked is not None else CanaryPlan()
    if asked is not None and asked.steps:
        raise UserMistake(
            "a canary needs traffic, and no release manager serves from this store",
            "start one (sightloom up), or leave --plan out: the version is champion at once",
        )
    return AT_ONCE


def _finished(ledger: Ledger, version: Version, result: release.Release, as_json: bool) -> release.Release:
    """Follow the canary, and wait until what the ledger says is live."""
    screen = Console(stderr=True, highlight=False)

    def show(figures: Mapping[str, Any]) -> None:
        if not as_json:
            screen.print(_canary_words(figures))

    state = follow(ledger, version.name, version.version, show)
    return release.as_release(
        state, version, result.num_lines, result.decision, result.run_id
    )  # fmt: skip


def _canary_words(figures: Mapping[str, Any]) -> str:
    its, base = figures["seen"]["challenger"], figures["seen"]["champion"]
    words = f"canary    {figures['share']}  {its['requests']}/{figures['needs']} requests  {its['errors']} errors"
    if its["ttft_p95_s"] is not None:
        words += f"  ttft p95 {its['ttft_p95_s']:.2f} s"
        if base["ttft_p95_s"] is not None:
            words += f" (champion {base['ttft_p95_s']:.2f})"
    if its["agreement"] is not None:
        words += f"  {its['agreement']:.0%} agree"
    return words


def _show_release(screen: Console, result: release.Release, dry_run: bool) -> None:
    if result.decision is not None:
        screen.print(f"gate      {result.decision.outcome}")
        for name, found in result.decision.domains.items():
            delta = "" if found.delta is None else f"  {100 * found.delta:+.1f}"
            screen.print(f"  {name:<10} {found.value:6.1%} n={found.n:<4}{delta}  {found.verdict}: {found.reason}")
        screen.print(f"report    run {result.run_id}, report.html")
    if dry_run:
        screen.print(f"champion  {result.champion or 'none'} (unchanged: --dry-run)")
        return
    number = result.events[-1] if result.events else "–"
    if result.champion != result.version:
        screen.print(f"canary    {result.model}:{result.challenger} begins   event {number}  {result.head[:12]}")
        screen.print(f"next:     sightloom promote {result.model}:{result.version} follows it; sightloom abort ends it")
        return
    before = "" if result.previous is None else f" (was {result.previous})"
    screen.print(f"champion  {result.model}:{result.champion}{before}   event {number}  {result.head[:12]}")
    if result.previous is not None:
        screen.print(f"back:     sightloom rollback {result.model} --reason …")


def _show_abort(screen: Console, result: release.Release) -> None:
    number = result.events[-1] if result.events else "–"
    screen.print(f"down      {result.model}:{result.version}   event {number}  {result.head[:12]}")
    screen.print(f"champion  {result.champion or 'none'} (unchanged)")

"""The acts of a release, promote and rollback: read the ledger, decide, append events, project the outcome."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightloom.config import digest
from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import LocalAnswerer
from sightloom.evaluation.examples import Example
from sightloom.evaluation.gate import Decision, GateRules, decide
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Result, save
from sightloom.evaluation.runner import evaluate
from sightloom.model.load import load
from sightloom.progress import Progress
from sightloom.promotion.decide import check_candidate, moves_to_promote, refused, version_to_restore
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.reconcile import project
from sightloom.promotion.states import ModelState, State
from sightloom.registry import Registry, Version
from sightloom.tracking import Tracker


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts, and why."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """What an act led to. `events` are the numbers of the ledger's lines that it wrote."""

    model: str
    version: int
    champion: int | None
    previous: int | None
    events: tuple[int, ...]
    head: str
    decision: Decision | None = None
    run_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        fields: dict[str, Any] = {
            "model": self.model,
            "version": self.version,
            "champion": self.champion,
            "previous": self.previous,
            "events": list(self.events),
            "head": self.head,
        }
        if self.decision is not None:
            gate = {name: asdict(found) for name, found in self.decision.domains.items()}
            fields["gate"] = {
                "outcome": self.decision.outcome, "domains": gate, "reasons": list(self.decision.reasons)
            }  # fmt: skip
            fields["run_id"] = self.run_id
        return fields


@dataclass(frozen=True, slots=True)
class Evidence:
    """A gate's question answered: the candidate's result, the baseline's on the same examples, and the verdict."""

    candidate: Result
    baseline: Result | None
    decision: Decision
    run_id: str
    report_sha256: str


def gather(
    registry: Registry,
    state: ModelState,
    version: Version,
    rules: GateRules,
    examples: Sequence[Example],
    cache: Path,
    tracker: Tracker,
    progress: Progress,
) -> Evidence:
    """Ask candidate and baseline the same questions, decide, and keep rows and report as an MLflow run.

    Raises:
        UserMistake: the version cannot be a candidate now, or the baseline is not registered.
        SightloomError: a version's files do not match its digest.
    """
    check_candidate(state, version.version)
    candidate = measure(registry, version, rules, examples, cache, progress)
    reference = rules.baseline
    if reference == "champion":
        reference = "none" if state.champion is None else f"{version.name}:{state.champion}"
    baseline = None
    if reference != "none":
        baseline = measure(registry, registry.resolve(reference), rules, examples, cache, progress)
    return record(registry, version, rules, examples, candidate, baseline, tracker)


def record(
    registry: Registry,
    version: Version,
    rules: GateRules,
    examples: Sequence[Example],
    candidate: Result,
    baseline: Result | None,
    tracker: Tracker,
) -> Evidence:
    """Decide on results that are there already, and keep rows and report as an MLflow run."""
    decision = decide(candidate.rows, None if baseline is None else baseline.rows, rules)
    run_id = tracker.start_run(f"gate {version.reference}", tags={"sightloom.gate": decision.outcome})
    facts = {
        "version": version.reference, "digest": version.digest, "gate digest": digest(rules), "run": run_id
    }  # fmt: skip
    page = render(
        Subject(f"{version.reference} at the gate", facts),
        candidate,
        examples,
        decision,
        None if baseline is None else baseline.rows,
    ).encode()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.html").write_bytes(page)
        save(candidate, folder)
        tracker.log_file(run_id, Path(folder))
    if tracker.uri:
        registry.log_metrics(version, run_id, candidate.metrics())
    tracker.end_run(run_id)
    return Evidence(candidate, baseline, decision, run_id, hashlib.sha256(page).hexdigest())


def promote(
    registry: Registry, ledger: Ledger, version: Version, evidence: Evidence, who: Who, override: bool = False
) -> Release:
    """Make a version champion if its verdict passed, or by an override with a reason.

    Events are evaluate and verdict, then (with a champion) start, then promote; aliases move only after the ledger has
    accepted the last one.

    Raises:
        GateNotPassed: the verdict is on record, the champion unchanged.
        LostRace: another event came first.
        UserMistake: the version cannot be promoted now, or an override has no reason.
    """
    if override and not who.reason:
        raise UserMistake("an override needs a reason", "--override --reason '…'")
    decision = evidence.decision
    state = ledger.read()
    moves = moves_to_promote(state.model(version.name), version.version, decision.outcome, override)
    proof = {"run_id": evidence.run_id, "report_sha256": evidence.report_sha256, "digest": version.digest}
    before = len(state.lines)
    for move in moves:
        state = ledger.append(
            state, move.kind, version.name, move.version, who.actor, who.reason, move.args, proof
        )  # fmt: skip
    project(state, registry, version.name)
    if state.model(version.name).champion != version.version:
        raise refused(version.name, version.version, decision.outcome, decision.reasons)
    return _release(state, version, before, decision, evidence.run_id)


def rollback(registry: Registry, ledger: Ledger, model: str, who: Who) -> Release:
    """Make the previous champion the champion again; raises UserMistake where there is none."""
    state = ledger.read()
    before = len(state.lines)
    version = registry.resolve(f"{model}:{version_to_restore(state.model(model), model)}")
    state = ledger.append(
        state, "rollback", model, version.version, who.actor, who.reason, evidence={"digest": version.digest}
    )
    project(state, registry, model)
    return _release(state, version, before, None, "")


def measure(
    registry: Registry,
    version: Version,
    rules: GateRules,
    examples: Sequence[Example],
    cache: Path,
    progress: Progress,
) -> Result:
    """Evaluate a registered version, its files verified first, with the gate's decoding."""
    with progress.step(f"load {version.reference}"):
        vlm = load(str(registry.materialize(version, cache)))
    asked = LocalAnswerer(vlm, thinking_budget=rules.decoding.thinking_token_budget)
    return evaluate(examples, asked, rules.decoding, rules.statistics, progress)


def history(state: State, model: str = "") -> list[Mapping[str, Any]]:
    """The ledger's lines as plain data, oldest first; of one model, or of all."""
    lines: list[Mapping[str, Any]] = []
    for line in state.lines:
        event = line.event
        if event is None or (model and event.model != model):
            continue
        lines.append(
            {
                "number": line.number,
                "outcome": line.outcome,
                "why": line.why,
                "kind": event.kind,
                "model": event.model,
                "version": event.version,
                "args": dict(event.args),
                "actor": event.actor,
                "at": event.at,
                "reason": event.reason,
                "evidence": dict(event.evidence),
                "digest": event.digest,
            }
        )
    return lines


def _release(state: State, version: Version, before: int, decision: Decision | None, run_id: str) -> Release:
    its = state.model(version.name)
    events = tuple(line.number for line in state.lines[before:] if line.outcome == "accepted")
    return Release(
        version.name, version.version, its.champion, its.previous, events, state.head, decision, run_id
    )  # fmt: skip

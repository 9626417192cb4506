"""The acts of a release, promote and rollback: read the ledger, decide, append events, project the outcome."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sightloom.config import digest
from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.gate import Decision, decide
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Result, save
from sightloom.progress import Progress
from sightloom.promotion.asking import Asker, Exam, InProcess, Pinned, wait_until_pinned
from sightloom.promotion.canary import AT_ONCE, CanaryPlan
from sightloom.promotion.decide import (
    check_candidate,
    moves_to_promote,
    refused,
    version_on_trial,
    version_to_restore,
)
from sightloom.promotion.fold import State, accepted
from sightloom.promotion.ledger import Ledger, lost_to, utc_now
from sightloom.promotion.reconcile import project
from sightloom.promotion.states import ModelState
from sightloom.registry import Registry, Version
from sightloom.tracking import Tracker


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts, and why."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """What an act led to.

    `events` are the numbers of the accepted lines since it began, `num_lines` how many lines the ledger had then.
    """

    model: str
    version: int
    champion: int | None
    previous: int | None
    events: tuple[int, ...]
    head: str
    decision: Decision | None = None
    run_id: str = ""
    challenger: int | None = None
    num_lines: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        fields: dict[str, Any] = {
            "model": self.model,
            "version": self.version,
            "champion": self.champion,
            "previous": self.previous,
            "challenger": self.challenger,
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
    """A gate's question answered: the candidate's result, the baseline's on the same examples, and the verdict.

    `seen`: where the model's versions stood then; a verdict against a champion that is gone promotes nobody.
    `evaluating`: the ledger says already that the candidate is under evaluation.
    """

    candidate: Result
    baseline: Result | None
    decision: Decision
    run_id: str
    report_sha256: str
    seen: ModelState | None = None
    evaluating: bool = False


def gather(
    registry: Registry,
    state: ModelState,
    version: Version,
    exam: Exam,
    asker: Asker,
    tracker: Tracker,
    progress: Progress,
) -> Evidence:
    """Ask candidate and baseline the same questions, decide, and keep rows and report as an MLflow run.

    Raises:
        UserMistake: the version cannot be a candidate now, or the baseline is not registered.
        SightloomError: a version's files do not match its digest.
    """
    check_candidate(state, version.version)
    candidate = exam.measured(asker, version, progress)
    reference = exam.rules.baseline
    if reference == "champion":
        reference = "none" if state.champion is None else f"{version.name}:{state.champion}"
    baseline = None
    if reference != "none":
        baseline = exam.measured(asker, registry.resolve(reference), progress)
    return replace(record(version, exam, candidate, baseline, tracker, asker.words), seen=state)


def examine(
    registry: Registry,
    ledger: Ledger,
    version: Version,
    exam: Exam,
    asker: Pinned,
    who: Who,
    tracker: Tracker,
    progress: Progress,
) -> Evidence:
    """Bring a version up behind the endpoint, reachable by its name alone, and gather the evidence there.

    One that is under evaluation already (a command that was interrupted) is asked anew. Where the questions cannot be
    put, the version is taken back; nothing else has changed.

    Raises:
        UserMistake, LostRace: as `promote`; the endpoint or its key is wrong.
        SightloomError: the version does not come up.
    """
    state = ledger.read()
    check_candidate(state.model(version.name), version.version)
    if state.model(version.name).stages.get(version.version) != "evaluating":
        proof = {"digest": version.digest}
        state = ledger.append(state, "evaluate", version.name, version.version, who.actor, who.reason, evidence=proof)
    try:
        with progress.step(f"bring up {version.reference}"):
            wait_until_pinned(asker.address, asker.key, ledger, version)
        found = gather(registry, state.model(version.name), version, exam, asker, tracker, progress)
    except SightloomError as error:
        state = ledger.read()
        if state.model(version.name).stages.get(version.version) == "evaluating":
            ledger.append(state, "abort", version.name, version.version, who.actor, f"not evaluated: {error.message}")
        raise
    return replace(found, evaluating=True)


def record(
    version: Version,
    exam: Exam,
    candidate: Result,
    baseline: Result | None,
    tracker: Tracker,
    asked: str = InProcess.words,
) -> Evidence:
    """Decide on results that are there already, and keep rows and report as an MLflow run. `asked`: where."""
    rows = None if baseline is None else baseline.rows
    decision = decide(candidate.rows, rows, exam.rules, candidate.perf, () if baseline is None else baseline.perf)
    tags = {"sightloom.gate": decision.outcome, "sightloom.asked": asked}
    run_id = tracker.start_run(f"gate {version.reference}", tags=tags)
    facts = {
        "version": version.reference, "digest": version.digest, "gate digest": digest(exam.rules), "asked": asked,
        "run": run_id,
    }  # fmt: skip
    page = render(Subject(f"{version.reference} at the gate", facts), candidate, exam.examples, decision, rows).encode()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.html").write_bytes(page)
        save(candidate, folder)
        tracker.log_file(run_id, Path(folder))
    tracker.log_metrics(run_id, candidate.metrics(), 0, version.model_id)
    tracker.end_run(run_id)
    return Evidence(candidate, baseline, decision, run_id, hashlib.sha256(page).hexdigest())


def promote(
    registry: Registry,
    ledger: Ledger,
    version: Version,
    evidence: Evidence,
    who: Who,
    override: bool = False,
    plan: CanaryPlan = AT_ONCE,
) -> Release:
    """Make a version champion if its verdict passed, or by an override with a reason.

    Events are evaluate and verdict, then (with a champion) start; with no steps in the plan promote follows at once,
    otherwise the release manager takes the challenger on from there. Aliases move only after the ledger has accepted
    an event.

    Raises:
        GateNotPassed: the verdict is on record, the champion unchanged.
        LostRace: another event came first, or the versions have moved since the evidence was gathered.
        UserMistake: the version cannot be promoted now, or an override has no reason.
    """
    if override and not who.reason:
        raise UserMistake("an override needs a reason", "--override --reason '…'")
    decision = evidence.decision
    state = ledger.read()
    its = state.model(version.name)
    if evidence.seen is not None and not its.same_place(evidence.seen):
        raise lost_to(state, "", version.name, utc_now())
    moves = moves_to_promote(its, version.version, decision.outcome, override, plan)
    if evidence.evaluating:
        moves = [move for move in moves if move.kind != "evaluate"]
    proof = {"run_id": evidence.run_id, "report_sha256": evidence.report_sha256, "digest": version.digest}
    before = len(state.lines)
    for move in moves:
        state = ledger.append(
            state, move.kind, version.name, move.version, who.actor, who.reason, move.args, proof
        )  # fmt: skip
    project(state, registry, version.name)
    if version.version not in (state.model(version.name).champion, state.model(version.name).challenger):
        raise refused(version.name, version.version, decision.outcome, decision.reasons)
    return as_release(state, version, before, decision, evidence.run_id)


def go_on(registry: Registry, ledger: Ledger, version: Version, who: Who, override: bool, plan: CanaryPlan) -> Release:
    """Promote a challenger whose plan is done, or by an override; one that is still on its plan goes on with it."""
    state = ledger.read()
    before = len(state.lines)
    for move in moves_to_promote(state.model(version.name), version.version, "passed", override, plan):
        state = ledger.append(
            state, move.kind, version.name, move.version, who.actor, who.reason, move.args, {"digest": version.digest}
        )
    project(state, registry, version.name)
    return as_release(state, version, before)


def rollback(registry: Registry, ledger: Ledger, model: str, who: Who) -> Release:
    """Make the previous champion the champion again; raises UserMistake where there is none."""
    return _take_back(registry, ledger, model, who, "rollback", version_to_restore)


def abort(registry: Registry, ledger: Ledger, model: str, who: Who) -> Release:
    """Take the version on trial back; raises UserMistake where there is none."""
    return _take_back(registry, ledger, model, who, "abort", version_on_trial)


def _take_back(
    registry: Registry,
    ledger: Ledger,
    model: str,
    who: Who,
    kind: Literal["rollback", "abort"],
    chosen: Callable[[ModelState, str], int],
) -> Release:
    state = ledger.read()
    before = len(state.lines)
    version = registry.resolve(f"{model}:{chosen(state.model(model), model)}")
    state = ledger.append(
        state, kind, model, version.version, who.actor, who.reason, evidence={"digest": version.digest}
    )
    project(state, registry, model)
    return as_release(state, version, before, None, "")


def as_release(
    state: State, version: Version, before: int = 0, decision: Decision | None = None, run_id: str = ""
) -> Release:
    """What an act led to; `before`: number of lines before it."""
    its = state.model(version.name)
    events = tuple(line.number for line in accepted(state.lines[before:]))
    return Release(
        version.name, version.version, its.champion, its.previous, events, state.head, decision, run_id,
        its.challenger, before,
    )  # fmt: skip

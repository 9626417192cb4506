"""The evidence of a gate: candidate and baseline are asked the same questions, and rows and report are kept."""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sightloom.config import digest
from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.gate import Decision, decide
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Result, save
from sightloom.progress import Progress
from sightloom.promotion.asking import Asker, Exam, InProcess, Pinned, wait_until_pinned
from sightloom.promotion.decide import check_candidate
from sightloom.promotion.events import Who
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.states import ModelState
from sightloom.registry import Registry, Version
from sightloom.tracking import Tracker


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


def check(state: ModelState, version: Version) -> None:
    """Refuse what cannot be promoted whatever its figures; raises UserMistake."""
    check_candidate(state, version.version)
    if not version.digest:  # no app is started for what cannot be verified
        raise UserMistake(
            f"{version.reference} carries no tag sightloom.digest: nobody can prove which files it is",
            "register its folder: sightloom register FOLDER",
        )


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
    check(state, version)
    candidate = exam.measured(asker, version, progress)
    reference = exam.rules.baseline
    if reference == "champion":
        reference = "none" if state.champion is None else f"{version.name}:{state.champion}"
    baseline, against = None, None
    if reference != "none":
        against = registry.resolve(reference)
        baseline = exam.measured(asker, against, progress, remembered=True)
    return replace(record(version, exam, candidate, baseline, tracker, asker.words, against), seen=state)


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
    check(state.model(version.name), version)
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
    against: Version | None = None,
) -> Evidence:
    """Decide on results that are there already, and keep them as an MLflow run.

    It holds `report.html`, `decision.json` (who was asked, and each domain's value, interval, difference and verdict),
    `rows.jsonl` and `result.json` of the candidate and, in `baseline/`, of the baseline.

    Args:
        asked: where, in words.
        against: the baseline's version.
    """
    rows = None if baseline is None else baseline.rows
    decision = decide(candidate.rows, rows, exam.rules, candidate.perf, () if baseline is None else baseline.perf)
    tags = {"sightloom.gate": decision.outcome, "sightloom.asked": asked}
    run_id = tracker.start_run(f"gate {version.reference}", tags=tags)
    facts = {
        "version": version.reference, "digest": version.digest,
        "baseline": "none" if against is None else against.reference,
        "baseline digest": "none" if against is None else against.digest,
        "gate digest": digest(exam.rules), "asked": asked, "run": run_id,
    }  # fmt: skip
    page = render(Subject(f"{version.reference} at the gate", facts), candidate, exam.examples, decision, rows).encode()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.html").write_bytes(page)
        Path(folder, "decision.json").write_text(json.dumps({**facts, **asdict(decision)}, indent=1))
        save(candidate, folder)
        if baseline is not None:
            save(baseline, str(Path(folder, "baseline")))
        tracker.log_file(run_id, Path(folder))
    tracker.log_metrics(run_id, candidate.metrics(), 0, version.model_id)
    tracker.end_run(run_id)
    return Evidence(candidate, baseline, decision, run_id, hashlib.sha256(page).hexdigest())

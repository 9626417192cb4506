"""Register, gate, promote, roll back: two real nano models, one real store, and the command line over them."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import yaml
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.errors import GateNotPassed, SightloomError, UserMistake
from sightloom.evaluation.examples import Example
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.jsonl import from_jsonl
from sightloom.evaluation.result import Identity, read_rows
from sightloom.evaluation.suites import Suite
from sightloom.evaluation.tracked import model_id
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.promotion.asking import Exam, InProcess, Pinned
from sightloom.promotion.events import Who
from sightloom.promotion.evidence import Evidence, examine, gather
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.reconcile import project
from sightloom.promotion.release import promote, rollback
from sightloom.registry import Registry, Version
from sightloom.tracking import MlflowTracker

ANN = Who("ann", "charts")
DOMAIN = {"min_n": 10, "margin": 0.5}


@dataclass
class Stage:
    uri: str
    folder: Path
    registry: Registry
    ledger: Ledger
    tracker: MlflowTracker
    versions: list[Version]
    examples: list[Example]

    def exam(self, floor: float) -> Exam:
        rules = GateRules.model_validate({
            "suites": "x", "decoding": {"max_new_tokens": 4}, "statistics": {"resamples": 200},
            "domains": {"art": {**DOMAIN, "floor": floor}}, "improvement": {"require": "none"},
        })  # fmt: skip
        suite = Suite.model_validate({"name": "s", "sources": [{"kind": "jsonl", "path": "q.jsonl"}]})
        return Exam(rules, suite, self.examples)

    def evidence(self, version: Version, floor: float) -> Evidence:
        state = self.ledger.read().model("nano")
        here = InProcess(self.registry, self.folder)
        return gather(self.registry, state, version, self.exam(floor), here, self.tracker, NullProgress())


@pytest.fixture(scope="module")
def stage(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("release")
    lines = [{"id": str(i), "question": f"{i}?", "answer": "x", "domain": "art"} for i in range(12)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tracker, registry = MlflowTracker(mlflow_uri, "release-tests"), Registry(mlflow_uri)
    run = tracker.start_run("train")
    texts = ["what is it? x is it"] * 50
    made = [build_folder("nano", texts, folder / f"nano-{seed}", seed) for seed in range(3)]
    versions = [registry.register("nano", one, run) for one in made]
    return Stage(
        mlflow_uri, folder, registry, Ledger(mlflow_uri), tracker, versions, from_jsonl(str(folder / "q.jsonl"))
    )


def test_the_road_of_a_release(stage: Stage) -> None:
    first, second, third = stage.versions
    found = promote(stage.registry, stage.ledger, first, stage.evidence(first, floor=0.0), ANN)
    assert (found.champion, found.previous) == (1, None)
    assert stage.registry.resolve("nano@champion").version == 1

    with pytest.raises(GateNotPassed, match="below the floor") as refusal:
        promote(stage.registry, stage.ledger, second, stage.evidence(second, floor=1.0), ANN)
    assert refusal.value.exit_code == 3
    assert stage.registry.resolve("nano").version == 1, "a candidate that did not pass moves nothing"
    assert stage.ledger.read().model("nano").stages[2] == "rejected"

    evidence = stage.evidence(second, floor=0.0)
    assert evidence.decision.against_baseline
    found = promote(stage.registry, stage.ledger, second, evidence, ANN)
    assert found.to_json()["gate"]["outcome"] == "passed"
    assert stage.registry.aliases("nano") == {"champion": 2, "previous": 1}
    run = stage.tracker._client.get_run(evidence.run_id)
    assert run.data.tags["sightloom.gate"] == "passed"
    measured = {metric.key: metric.value for metric in stage.tracker._client.get_logged_model(second.model_id).metrics}
    assert measured["eval/art/accuracy"] == evidence.candidate.domains["art"].value, "at the version, too"
    kept = Path(mlflow.artifacts.download_artifacts(run_id=evidence.run_id, tracking_uri=stage.registry.uri))
    rows = [read_rows(kept), read_rows(kept / "baseline")]
    assert [row.id for row in rows[0]] == [row.id for row in rows[1]], "both sides of the pairs"
    for asked, its in zip((second, first), rows, strict=True):
        assert {(row.model, row.version, row.digest) for row in its} == {("nano", str(asked.version), asked.digest)}
    decision, page = json.loads((kept / "decision.json").read_text()), (kept / "report.html").read_text()
    assert (decision["version"], decision["baseline"]) == ("nano:2", "nano:1") and decision["outcome"] == "passed"
    assert (decision["digest"], decision["baseline digest"]) == (second.digest, first.digest)
    art = decision["domains"]["art"]
    assert (
        art["value"] == measured["eval/art/accuracy"] and len(art["delta_bounds"]) == 2 and art["verdict"] == "passed"
    )
    assert first.digest in page and "Holm p" in page and 0 <= art["p_adjusted"] <= 1

    with pytest.raises(UserMistake, match="champion already"):
        stage.evidence(second, floor=0.0)
    with pytest.raises(UserMistake, match="needs a reason"):
        promote(stage.registry, stage.ledger, third, stage.evidence(third, 1.0), Who("ann", ""), override=True)
    promote(stage.registry, stage.ledger, third, stage.evidence(third, 1.0), ANN, override=True)
    assert stage.registry.aliases("nano") == {"champion": 3, "previous": 2}

    found = rollback(stage.registry, stage.ledger, "nano", Who("ann", "worse on charts"))
    assert (found.champion, found.previous) == (2, None)
    assert stage.registry.aliases("nano") == {"champion": 2}
    with pytest.raises(UserMistake, match="no previous champion"):
        rollback(stage.registry, stage.ledger, "nano", ANN)


def test_a_version_that_cannot_be_asked_is_taken_back_and_the_champion_stays(stage: Stage) -> None:
    first, champion = stage.versions[0], stage.ledger.read().model("nano").champion
    here = InProcess(stage.registry, stage.folder)
    nobody = Pinned("http://127.0.0.1:9", "", here)
    exam = stage.exam(floor=0.0)
    with pytest.raises(UserMistake, match="nothing answers"):
        examine(stage.registry, stage.ledger, first, exam, nobody, ANN, stage.tracker, NullProgress())
    state = stage.ledger.read()
    assert state.model("nano").stages[1] == "aborted" and state.model("nano").champion == champion
    last = [line.event for line in state.lines if line.event is not None][-2:]
    assert [event.kind for event in last] == ["evaluate", "abort"]
    assert last[1].reason.startswith("not evaluated: nothing answers") and last[1].actor == ANN.actor


def test_an_alias_moved_by_hand_is_put_back(stage: Stage) -> None:
    state = stage.ledger.read()
    champion = state.model("nano").champion
    assert champion is not None
    stage.registry.set_alias("nano", "champion", 1)
    stage.registry.set_alias("nano", "challenger", 3)
    stage.registry.set_alias("nano", "favourite", 3)
    assert set(project(state, stage.registry, "nano")) == {"champion", "challenger"}
    assert stage.registry.aliases("nano") == {"champion": champion, "favourite": 3}
    assert project(state, stage.registry, "nano") == {}


def test_the_verbs_speak_json_and_end_with_their_exit_codes(stage: Stage, tmp_path: Path) -> None:
    suite = {"name": "s", "sources": [{"kind": "jsonl", "path": str(stage.folder / "q.jsonl")}]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**suite, "decoding": {"max_new_tokens": 4}}))
    gate = {"suites": "s.yaml", "decoding": {"max_new_tokens": 4}, "domains": {"art": {**DOMAIN, "floor": 1.0}}}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(gate))
    fourth = build_folder("nano", ["other words"] * 50, tmp_path / "nano", 9)
    version = stage.registry.register("nano", fourth, stage.versions[0].run_id or "")

    def say(*words: str, code: int = 0) -> dict[str, object]:
        outcome = CliRunner().invoke(cli, [*words, "--json"])
        assert outcome.exit_code == code, outcome.output
        return dict(json.loads(outcome.stdout)) if code == 0 else {"error": outcome.stderr}

    store = ("--store", stage.uri)
    out = str(tmp_path / "out")
    measured = say("evaluate", str(tmp_path / "s.yaml"), "--checkpoint", version.reference, *store)
    kept = Path(mlflow.artifacts.download_artifacts(run_id=str(measured["run_id"]), tracking_uri=stage.uri))
    assert {(row.model, row.version, row.digest) for row in read_rows(kept)} == {("nano", "4", version.digest)}
    assert version.digest in (kept / "report.html").read_text() and (kept / "result.json").is_file()
    its = {metric.key for metric in stage.tracker._client.get_logged_model(version.model_id).metrics}
    assert "eval/art/accuracy" in its, "at the version, too"
    for who, found_id in {
        Identity("nano", "4", version.digest): version.model_id,
        Identity("nano", "4", "0" * 64): "",  # a folder that is served under that number
        Identity("nano", "99", version.digest): "",
        Identity("nano", "4"): "",
    }.items():
        assert model_id(stage.registry, who) == found_id, who
    wrong = say("evaluate", str(tmp_path / "s.yaml"), "--checkpoint", str(fourth), "--engine", "vllm", code=2)
    assert "add --serve" in str(wrong["error"])
    found = say("evaluate", str(tmp_path / "s.yaml"), "--checkpoint", str(fourth), "--out", out, "--no-track")
    assert found["run_id"] == ""
    assert {"overall", "domains"} <= found.keys()
    assert (tmp_path / "out" / "report.html").is_file()
    assert "either --checkpoint" in str(say("evaluate", str(tmp_path / "s.yaml"), code=2)["error"])
    assert "no configuration file" in str(say("evaluate", "gone.yaml", "--checkpoint", "x", code=2)["error"])

    promoting = (
        "promote",
        version.reference,
        "--gate",
        str(tmp_path / "g.yaml"),
        *store,
        "--cache",
        str(tmp_path / "c"),
    )
    before = stage.ledger.read().head
    assert say(*promoting, "--dry-run")["events"] == []
    (answers,) = (tmp_path / "c" / "answers").iterdir()
    asked_at = answers.stat().st_mtime_ns
    assert stage.ledger.read().head == before
    assert "did not pass the gate" in str(say(*promoting, code=3)["error"])
    assert say(*promoting, "--set", "domains.art.floor=0", "--set", "improvement.require=none")["champion"] == 4
    assert [file.stat().st_mtime_ns for file in (tmp_path / "c" / "answers").iterdir()] == [asked_at], "asked once"
    assert "no model version 'nano:99'" in str(say("promote", "nano:99", *promoting[2:], code=2)["error"])

    shown = say("history", *store)
    assert isinstance(shown["events"], list)
    assert [event["kind"] for event in shown["events"]][-3:] == ["verdict", "start", "promote"]
    assert say("models", "show", "nano", *store)["stage"] == "champion"
    assert say("rollback", "nano", "--reason", "back", *store)["champion"] == 2
    assert "no MLflow store" in str(say("history", "--store", f"sqlite:///{tmp_path}/gone.db", code=2)["error"])

    assert say("models", "verify", "nano:4", *store)["verified"] is True
    weights = stage.registry.materialize(version, tmp_path) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "model.safetensors" in str(say("models", "verify", "nano:4", *store, code=1)["error"])
    with pytest.raises(SightloomError, match=r"model\.safetensors"):
        stage.evidence(version, 0.0)

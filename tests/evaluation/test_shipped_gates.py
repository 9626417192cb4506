"""Each gate of pipelines/gates on a run of its own suite, with a handful of questions: every rule finds its metric."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from sightloom.config import load
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.demo.corpus.painters import sample
from sightloom.evaluation.answerers import Prediction
from sightloom.evaluation.examples import Example
from sightloom.evaluation.gate import GateRules, decide
from sightloom.evaluation.judge import judge
from sightloom.evaluation.result import Perf, Row
from sightloom.evaluation.suites import Suite, read_suite
from sightloom.records import DOMAINS

from .conftest import write_shards

PIPELINES = Path(__file__).parents[2] / "pipelines"
GATES = sorted(path.name for path in (PIPELINES / "gates").glob("*.yaml"))
SPEED = [Perf(clients, 200, 0, 0.1, 0.2, 0.01, 0.02, 500.0) for clients in (1, 8)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve pictures of each domain with their questions."""
    samples = []
    for index in range(12 * len(DOMAINS)):
        drawn = sample(3, index)
        buffer = io.BytesIO()
        drawn.image.save(buffer, "PNG")
        samples += [(record.to_json(), buffer.getvalue()) for record in drawn.records(f"r{index}")[1:]]
    return str(write_shards(tmp_path_factory.mktemp("gates") / "shards", samples))


def right(example: Example) -> str:
    if example.answer.kind != "point":
        return str(example.answer.value)
    x0, y0, x1, y1 = example.answer.value  # type: ignore[misc]
    return f"({(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f})"


def rows(examples: list[Example], words: Callable[[Example], str]) -> tuple[Row, ...]:
    return judge(examples, [Prediction(e.id, words(e), "so", "complete", "stop", 5, 1.0) for e in examples])


@pytest.mark.parametrize("gate", GATES)
def test_a_shipped_gate_decides_on_a_run_of_its_suite(gate: str, manifest: str) -> None:
    rules = load(GateRules, PIPELINES / "gates" / gate, ["statistics.resamples=200"])
    # a margin that so few questions can show: two sides that are equal on n pictures may still differ by 3 in n
    few = {name: rule.model_copy(update={"min_n": 6, "margin": 0.3}) for name, rule in rules.domains.items()}
    rules = rules.model_copy(update={"domains": few})
    suite = load(Suite, PIPELINES / "gates" / rules.suites)
    sources = [its.model_copy(update={"per_domain": 24, "heldout": 1.0}) for its in suite.sources]
    examples = read_suite(suite.model_copy(update={"sources": tuple(sources)}), manifest, GENERATORS)
    knows, guesses = rows(examples, right), rows(examples, lambda example: "no")
    won = decide(knows, guesses, rules, SPEED, SPEED)
    assert won.outcome == "passed", won.reasons
    assert {found.verdict for found in (*won.domains.values(), *won.perf)} == {"passed"}
    assert all(found.value == 1 and found.n >= 6 for found in won.domains.values())
    assert decide(guesses, knows, rules, SPEED, SPEED).outcome == "rejected"
    assert decide(knows, None, rules).outcome == "passed", "where nothing serves, speed is told and blocks nobody"
    assert len(won.perf) == len(rules.perf)


def test_the_release_gate_asks_for_every_row_of_the_design() -> None:
    rules = load(GateRules, PIPELINES / "gates" / "release.yaml")
    assert {name: rule.metric for name, rule in rules.domains.items()} == {
        "natural": "accuracy", "document": "relaxed_accuracy", "science": "accuracy", "ui": "point_in_box",
        "art": "accuracy", "format": "well_formed", "hallucination": "f1",
    }  # fmt: skip
    suite = load(Suite, PIPELINES / "gates" / rules.suites)
    assert suite.perf is not None and {rule.clients for rule in rules.perf} <= set(suite.perf.clients)
    assert [rule.metric for rule in rules.perf] == ["ttft_p95_s"]

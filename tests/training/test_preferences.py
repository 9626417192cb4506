"""The prefer stage in process: DPO and a reward model on nano, from records of kind preference to a decided gate."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.training.conftest import UNHELPFUL, write_shards

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.best_of import BestOf
from sightloom.evaluation.examples import Example
from sightloom.model.chat import Encoder
from sightloom.model.load import load as load_model
from sightloom.model.reward import RewardModel
from sightloom.progress import NullProgress
from sightloom.records import Answer, Conversation, Message
from sightloom.tracking import NullTracker
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.index import index_for
from sightloom.training.objective_options import DpoObjective
from sightloom.training.parallel import Workers
from sightloom.training.stages import TrainResult, train
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.dpo import Dpo

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), 20, 20, num_preferences=60)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def curriculum(manifest: str, objective: dict[str, Any], **stage: Any) -> Curriculum:
    sets = [f"data.manifest={manifest}", "defaults.evaluate.per_domain=2", "defaults.evaluate.max_new_tokens=4"]
    sets += ["data.heldout=0.3", "ray.workers=0"]
    prefer = {
        "name": "prefer",
        "stage": "prefer",
        "steps": 8,
        "objective": objective,
        "mix": {"pairs": {"where": 'kind == "preference"', "weight": 1.0}},
        "train": {"decoder": 0.002, "head": 0.002},
        "batch": {"packs": 2, "max_tokens": 700, "window": 32},
        "optim": {"kind": "adamw", "schedule": "constant"},
        "promote_if": [{"metric": "eval/all/pair_accuracy", "above": "init", "by": 0.05}],
        **stage,
    }
    return load(Curriculum, NANO, [*sets, f"stages={yaml.safe_dump([prefer], default_flow_style=True).strip()}"])


def run(options: Curriculum, out: Path) -> TrainResult:
    return train(options, str(out), NullProgress(), NullTracker())


@pytest.mark.parametrize("objective", [{"kind": "dpo", "label_smoothing": 0.1}, {"kind": "dpo", "loss": "ipo"}])
def test_dpo_raises_the_share_of_held_out_pairs_in_order_and_its_gate_sees_it(
    manifest: str, out: Path, objective: dict[str, Any]
) -> None:
    stage = run(curriculum(manifest, objective), out).stages[0]
    assert stage.status == "promoted" and stage.metrics["eval/all/pair_accuracy"] >= 0.9
    assert stage.gates[0].endswith("(started at 0.5)")  # policy and reference are one: every pair is a tie
    assert stage.samples >= 8 and stage.metrics["eval/all/pairs"] > 5


def test_a_reward_model_is_exported_with_its_head_and_prefers_what_it_was_taught(manifest: str, out: Path) -> None:
    result = run(curriculum(manifest, {"kind": "rm", "margin": 0.1}, steps=12), out)
    assert result.stages[0].metrics["eval/all/pair_accuracy"] >= 0.9
    assert "eval/all/accuracy" not in result.stages[0].metrics
    judge = RewardModel(result.model_dir)
    asked = Message("user", "What is shown?")
    scores = [
        judge.score(Conversation("x", "conversation", "caption", "ui", (asked, Message("assistant", text))), None)
        for text in ("A red circle on the left of a blue square.", UNHELPFUL)
    ]
    assert scores[0] > scores[1]
    asked_of = Conversation("x", "conversation", "caption", "ui", (asked,))
    example = Example("x", "s", "ui", "caption", None, asked_of, Answer("text", "a red circle"), "x")
    start = load_model(str(next(out.glob("start-*"))))
    (best,) = BestOf(start, judge, 3).answer([example], None, 4)
    assert best.error is None and best.content
    with pytest.raises(UserMistake, match="is no reward model"):
        RewardModel(str(next(out.glob("start-*"))))


def test_a_gate_on_pairs_holds_a_stage_that_does_not_move(manifest: str, out: Path) -> None:
    with pytest.raises(SightloomError, match=r"pair_accuracy 0\.\d+ >= 0\.55 .started at 0\.5"):
        run(curriculum(manifest, {"kind": "dpo"}, steps=1, train={"vision": 1e-12}), out)


def test_a_pair_stays_whole_in_its_pack_and_fits_it(manifest: str, out: Path) -> None:
    start = next(out.glob("start-*"))
    vlm = load_model(str(start))
    encoder = Encoder(vlm.processor)
    index = index_for(read_manifest(manifest), start, encoder, out, NullProgress())
    stage = curriculum(manifest, {"kind": "dpo"}).stages[0]
    assert isinstance(stage.objective, DpoObjective)
    corpus = Corpus(((manifest, str(index)),), 0.3)
    dpo = Dpo(stage.objective, stage, corpus, Packer(encoder, vlm.model.config), Workers(0, 1), 3, vlm)
    unhelpful = encoder.num_tokens(UNHELPFUL)
    try:
        for batch in dpo.batches(0):
            pack = batch.pack
            assert pack.num_documents == 2 * batch.num_pairs and pack.num_tokens <= stage.batch.max_tokens
            labels = pack.label_documents.bincount(minlength=pack.num_documents)
            assert int(labels[: batch.num_pairs].min()) > unhelpful
            assert torch.equal(labels[batch.num_pairs :], torch.full((batch.num_pairs,), int(labels[-1])))
    finally:
        dpo.close()
    assert not any(kind == "preference" for kind in corpus.column("kind", corpus.sources(_imitating(stage))[0].rows))


def _imitating(stage: Stage) -> Stage:
    """The same stage as fine-tuning on everything: comparisons are nothing to imitate."""
    data = stage.model_dump(mode="json") | {"objective": {"kind": "sft"}, "mix": {"all": {"weight": 1.0}}}
    return Stage.model_validate(data)

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightloom.config import load, validate
from sightloom.errors import UserMistake
from sightloom.training.curriculum import Curriculum

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"


def nano() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(NANO.read_text())
    return data


def test_every_stage_has_the_precision_of_the_defaults_or_its_own() -> None:
    adamw = "defaults.optim={kind: adamw}"
    curriculum = load(Curriculum, NANO, [adamw, "defaults.precision=bf16", "stages.3.precision=fp32"])
    assert [stage.precision for stage in curriculum.stages] == ["bf16", "bf16", "bf16", "fp32", "bf16"]


def test_the_nano_curriculum_is_valid_and_its_stages_inherit_the_defaults() -> None:
    curriculum = load(Curriculum, NANO, ["defaults.optim.clip=0.5", "stages.1.optim.clip=2.0"])
    assert [stage.stage for stage in curriculum.stages] == ["align", "instruct", "reason", "reason", "specialize"]
    assert [stage.optim.clip for stage in curriculum.stages[:3]] == [0.5, 2.0, 0.5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["stages"][0].update(setps=3), r"unknown key 'setps' in stages.0 .*did you mean 'steps'"),
        (lambda d: d["stages"][0]["objective"].update(kind="ppo"), "'ppo'.*'align', 'sft', 'rl', 'dpo', 'rm'"),
        (
            lambda d: d["stages"][3].update(objective={"kind": "dpo", "loss": "ipo", "label_smoothing": 0.1}),
            "no meaning",
        ),
        (lambda d: d["stages"][3].update(objective={"kind": "rm"}), "trains its head"),
        (lambda d: d["stages"][3].update(objective={"kind": "rm"}, train={"head": 1.0}), "start from a reward model"),
        (
            lambda d: d["stages"][0].update(stage="aling"),
            "'align', 'instruct', 'reason', 'prefer' or 'specialize'.*'aling'",
        ),
        (lambda d: d["stages"].reverse(), "after a later kind of stage"),
        (lambda d: d["stages"][1]["mix"]["replay"].update(weight=0.5), "must sum to 1"),
        (lambda d: d.update(parallel={"shard": 3}), "replicate x shard must be the number of workers, 2"),
        (lambda d: d.update(parallel={"replicate": 2, "shard": 2}), "they are 2 x 2"),
        (lambda d: d.update(parallel={"shard": 2}), "stages.0.optim.kind: muon needs whole .* parallel.shard adamw"),
        (lambda d: d["defaults"].update(precision="bf16"), "stages.0.optim.kind: muon needs .* precision: bf16 adamw"),
        (lambda d: d["defaults"].update(precision="fp16"), "'fp32' or 'bf16'.*'fp16'"),
        (lambda d: d["stages"][3].update(precision="bf16"), "stages.3.objective: rl .* precision: bf16 does not"),
        (lambda d: d["ray"].update(workers=0, gpus_per_worker=1), "gpus_per_worker needs workers"),
        (lambda d: d["model"].update(pixels=[4096, 1024]), "the least .4096. is above the most .1024."),
        (lambda d: d["stages"][0].update(epochs=1), "'align': give either steps or epochs"),
        (lambda d: d["stages"][0].pop("steps"), "'align': give either steps or epochs"),
        (lambda d: (d["run"].update(name="My.Run"), d["stages"][4].update(register=True)), "cannot name a registered"),
        (lambda d: d["stages"][0].update(regster=True), "unknown key 'regster'.*did you mean 'register'"),
        (lambda d: d["stages"][0]["train"].update(visoin=0.1), "unknown key 'visoin'.*did you mean 'vision'"),
        (lambda d: d["stages"][1].update(init="reason-sft"), "'reason-sft' is no earlier stage and no path"),
        (lambda d: d["stages"][0].update(train={}), "everything is frozen"),
        (
            lambda d: d["stages"][4]["train"].update(decoder={"lora": {"rnak": 4, "alpha": 8}, "lr": 1.0}),
            "unknown key 'rnak'.*did you mean 'rank'",
        ),
        (lambda d: d["stages"][4]["train"].update(vision={"lora": {"rank": 4, "alpha": 8}, "lr": 1.0}), "train.vision"),
        (lambda d: d["model"].update(pretrained="x"), "either preset or pretrained"),
        (lambda d: d["stages"][1]["promote_if"][0].update(max=1), "exactly one of"),
        (lambda d: d["stages"][1].update(name=d["stages"][0]["name"]), "used twice"),
    ],
)
def test_a_wrong_curriculum_is_refused_in_words(change: Any, words: str) -> None:
    data = copy.deepcopy(nano())
    change(data)
    with pytest.raises(UserMistake, match=words):
        validate(Curriculum, data, "nano.yaml")

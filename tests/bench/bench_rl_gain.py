"""What reinforcement adds to a chain-of-thought start, on pictures that no training saw, with 95 % intervals.

For each seed the first three stages of `pipelines/curricula/nano.yaml`, made shorter (something is left to be
learnt), give a start; each arm runs the stage `reason-rl` of the file from it, longer, with its own advantage (or with
credit by response, or with entropy shaping); greedy answers before and after are compared question by question.

    python tests/bench/bench_rl_gain.py [--seeds 31 32 33] [--arms g2rpo grpo plain band] [--steps 480] [--out FOLDER]

FOLDER keeps starts and finished arms: the same command goes on with what is missing. About 6 minutes a start and 6 an
arm on two idle cores. The last line is one JSON object.
"""

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sightloom import config
from sightloom.data.shards.manifest import read_manifest
from sightloom.demo.corpus.examples import five_domains
from sightloom.evaluation.answerers import LocalAnswerer
from sightloom.evaluation.examples import Example
from sightloom.evaluation.judge import judge
from sightloom.evaluation.suites import ProceduralSource
from sightloom.metrics import paired_bootstrap
from sightloom.model.chat import Encoder
from sightloom.model.load import load
from sightloom.progress import NullProgress
from sightloom.tracking import NullTracker
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import index_for
from sightloom.training.parallel import Workers
from sightloom.training.stages import train
from sightloom.training.worker import StageOrder, run_stage

ROOT = Path(__file__).parents[2]
NANO = ROOT / "pipelines" / "curricula" / "nano.yaml"
write_shards = runpy.run_path(str(ROOT / "tests" / "training" / "conftest.py"))["write_shards"]
PAIRS, PICTURES, STEPS = 6000, 3000, (400, 150, 450)
RL_STEPS = 480  # within ten minutes on two idle cores
ASKED, ASKED_SEED = 800, 900  # a domain, of pictures drawn for this alone
BAND = (0.3, 0.6)  # nats a token
ARMS = {
    "g2rpo": ["objective.advantage.name=g2rpo"],
    "grpo": ["objective.advantage.name=grpo"],
    "plain": ["objective.advantage.credit=response"],
    "band": [f"objective.entropy={{coef: 0.5, bands: {{default: [{BAND[0]}, {BAND[1]}]}}}}"],
}


def curriculum(folder: Path, stages: slice, sets: Sequence[str]) -> Curriculum:
    """Some stages of the file."""
    raw = yaml.safe_load(NANO.read_text())
    raw["stages"] = raw["stages"][stages]
    file = folder / f"stages-{stages.start or 0}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return config.load(Curriculum, file, list(sets))


def make_start(folder: Path, seed: int) -> dict[str, Any]:
    """The corpus and the model after chain of thought."""
    manifest = folder / "shards" / "manifest.json"
    if not manifest.exists():
        write_shards(manifest.parent, PAIRS, PICTURES, seed=seed, per_shard=2000)
    sets = [
        f"data.manifest={manifest}",
        f"run.seed={seed}",
        "gates=warn",
        "ray.workers=0",
        "checkpoint.every_minutes=60",
    ]
    for number, steps in enumerate(STEPS):
        sets += [f"stages.{number}.steps={steps}", f"stages.{number}.evaluate.per_domain=20"]
    began = time.perf_counter()
    result = train(curriculum(folder, slice(3), sets), str(folder / "train"), NullProgress(), NullTracker())
    return {"model": result.model_dir, "seconds": round(time.perf_counter() - began, 1)}


def run_arm(folder: Path, name: str, start: str, seed: int, steps: int) -> dict[str, Any]:
    """Reinforcement from the start: where the model is, and what the steps said of themselves."""
    manifest = str(folder / "shards" / "manifest.json")
    sets = [f"data.manifest={manifest}", f"stages.0.steps={steps}"]
    sets += [f"stages.0.{override}" for override in ARMS[name]]
    stage = curriculum(folder, slice(3, 4), sets).stages[0]
    index = index_for(read_manifest(manifest), Path(start), Encoder(load(start).processor), folder, NullProgress())
    order = StageOrder(
        number=0, digest="0" * 64, seed=seed, stage=stage, parts=((manifest, str(index)),), heldout=0.1, start=start,
        folder=str(folder / name), store=str(folder / name / "checkpoints"), checkpoint={"every_minutes": 60.0},
        info={"stage": stage.name},
    )  # fmt: skip
    said: list[dict[str, float]] = []
    outcome = run_stage(order, Workers(0, 1), lambda e: said.append(e["metrics"]) if e["kind"] == "step" else None)
    part = max(1, len(said) // 5)
    kept = ("rollout/accuracy", "rollout/kept_share", "rollout/length", "train/entropy", "rollout/tokens_per_s")
    means = []
    for first in range(0, len(said), part):
        told = said[first : first + part]
        found = {key: [metrics[key] for metrics in told if key in metrics] for key in kept}
        means.append({key: round(float(np.mean(values)), 3) for key, values in found.items() if values})
    return {"model": str(folder / name / "model"), "seconds": round(outcome["seconds"], 1), "steps": means}


def answers(model: str, examples: Sequence[Example]) -> list[bool]:
    """Which greedy answers are right."""
    rows = judge(examples, LocalAnswerer(load(model), 256).answer(examples, True, 96))
    return [row.right for row in rows]


def kept(file: Path, make: Any) -> Any:
    """What was made before, or now."""
    if not file.exists():
        value = make()
        file.write_text(json.dumps(value))
    return json.loads(file.read_text())


def gain(before: Sequence[bool], after: Sequence[bool], groups: Sequence[str]) -> dict[str, Any]:
    """Accuracy before and after, in points, with the interval of the difference."""
    found = paired_bootstrap(np.array(after, float), np.array(before, float), ASKED_SEED, groups=groups)
    return {
        "before": round(100 * float(np.mean(before)), 1), "after": round(100 * float(np.mean(after)), 1),
        "gain": round(100 * found.value, 1), "ci": [round(100 * found.low, 1), round(100 * found.high, 1)],
        "n": len(before),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=["g2rpo", "grpo"])
    parser.add_argument("--steps", type=int, default=RL_STEPS)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2, help="1: two seeds side by side, in two processes")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.out or Path(scratch)
        source = ProceduralSource(kind="procedural", generator="five-domains", per_domain=ASKED, seed=ASKED_SEED)
        examples = five_domains(source, "rl-gain")
        hard = [number for number, example in enumerate(examples) if example.needs_steps]
        before: dict[int, list[bool]] = {}
        after: dict[str, dict[int, list[bool]]] = {arm: {} for arm in asked.arms}
        for seed in asked.seeds:
            folder = out / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            start = kept(folder / "start.json", lambda folder=folder, seed=seed: make_start(folder, seed))["model"]
            before[seed] = kept(folder / "before.json", lambda start=start: answers(start, examples))
            for arm in asked.arms:
                done = kept(
                    folder / f"{arm}.json",
                    lambda folder=folder, arm=arm, start=start, seed=seed: run_arm(
                        folder, arm, start, seed, asked.steps
                    ),
                )
                after[arm][seed] = kept(
                    folder / f"{arm}-after.json", lambda done=done: answers(done["model"], examples)
                )
                print(json.dumps({"seed": seed, "arm": arm, "seconds": done["seconds"], "steps": done["steps"]}))
        report: dict[str, Any] = {"name": "rl_gain", "unit": "points of greedy accuracy", "target": 5}
        for arm, found in after.items():
            report[arm] = {
                kind: {str(seed): _gain(before[seed], found[seed], examples, rows) for seed in asked.seeds}
                for kind, rows in (("steps", hard), ("all", list(range(len(examples)))))
            }
            report[arm]["steps"]["mean"] = round(float(np.mean([v["gain"] for v in report[arm]["steps"].values()])), 1)
        if {"g2rpo", "grpo"} <= set(asked.arms):
            report["g2rpo over grpo"] = {
                str(seed): _gain(after["grpo"][seed], after["g2rpo"][seed], examples, hard) for seed in asked.seeds
            }
    print(json.dumps(report))


def _gain(
    before: Sequence[bool], after: Sequence[bool], examples: Sequence[Example], rows: Sequence[int]
) -> dict[str, Any]:
    return gain([before[i] for i in rows], [after[i] for i in rows], [examples[i].group for i in rows])


if __name__ == "__main__":
    main()

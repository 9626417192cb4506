"""Rollouts of a step against the bare engine on the same requests, and where the time of a step of RL goes.

Ours (`Rollouts.get`) draws prompts, reads and renders them, generates, scores in the scoring process and writes the
table; the peer generates from prompts that lie ready. Both run in turn, in one process, on two threads; the responses
of the untrained model have all the allowed length, 32 tokens, about that of a trained nano. The last line is one JSON
object.
"""

import json
import runpy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Encoder
from sightloom.model.generation import Generation, GenerationRequest, Generator
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load as load_model
from sightloom.model.modules import module_groups
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.objective_options import RlObjective
from sightloom.training.optim import build_optimizer
from sightloom.training.parallel import Workers
from sightloom.training.rollouts import Rollouts
from sightloom.training.scoring import Scorers
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.rl import Rl

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
ROUNDS, PROMPTS, N, TOKENS = 5, 16, 8, 32
OVERRIDES = (
    "data.manifest=x", f"stages.3.objective.rollout.prompts={PROMPTS}", f"stages.3.objective.rollout.n={N}",
    f"stages.3.objective.rollout.max_new_tokens={TOKENS}", "stages.3.objective.rollout.rounds=1",
    "stages.3.objective.rollout.keep=[0.0,1.0]",
)  # fmt: skip
write_shards = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["write_shards"]


class TimedEngine:
    """The generator, with its time and its requests noted."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.seconds, self.requests = generator, 0.0, list[GenerationRequest]()

    def load_weights(self, version: int, uri: str | None) -> None:
        """Nothing: the weights are shared."""

    def close(self) -> None:
        """Nothing to end."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answer all requests."""
        began = time.perf_counter()
        self.requests = list(requests)
        found = self.generator.generate(requests)
        self.seconds += time.perf_counter() - began
        return found


class TimedRollouts(Rollouts):
    """A step's rollouts, with their time noted; the packing behind them is the update's."""

    seconds = 0.0

    def get(self, step):  # type: ignore[no-untyped-def]
        """The step's groups."""
        began = time.perf_counter()
        groups = super().get(step)
        self.seconds += time.perf_counter() - began
        return groups


class TimedScorers(Scorers):
    """The scoring process, with its time noted."""

    seconds = 0.0

    def score(self, content, answer):  # type: ignore[no-untyped-def]
        """Score one answer."""
        began = time.perf_counter()
        reward = super().score(content, answer)
        self.seconds += time.perf_counter() - began
        return reward


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(2)
    alone = Workers(0, 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = write_shards(folder / "shards", 60, 200)
        manifest = read_manifest(uri)
        vlm = load_model(str(build_folder("nano", corpus_texts(manifest, 1, 1000), folder / "start", 1)))
        encoder = Encoder(vlm.processor)
        index = index_for(manifest, folder / "start", encoder, folder, NullProgress())
        corpus = Corpus(((uri, str(index)),), 0.1)
        stage = load(Curriculum, NANO, list(OVERRIDES)).stages[3]
        options = stage.objective
        assert isinstance(options, RlObjective)
        packer = Packer(encoder, vlm.model.config)
        model = TrainableVLM(vlm.model)
        optimizer = build_optimizer(
            dict(model.named_parameters()), module_groups(model), stage.train.by_group(), stage.optim, alone
        )
        engine, scorers = TimedEngine(Generator(vlm, options.rollout.batch_size)), TimedScorers()
        rollouts = TimedRollouts(options, stage, corpus, encoder, engine, alone, 1, folder / "rollouts", scorers)
        objective = Rl(options, stage, corpus, packer, alone, 1, vlm, folder, engine, rollouts)
        ratios, parts = [], {"rollout": 0.0, "reward": 0.0, "update": 0.0, "rest": 0.0}
        for step in range(ROUNDS + 1):
            generated, scored, ours = engine.seconds, scorers.seconds, rollouts.seconds
            began = time.perf_counter()
            batches = objective.batches(step)
            ours = rollouts.seconds - ours
            counts = objective.counts(batches)
            optimizer.zero_grad(set_to_none=True)
            for batch in batches:
                objective.loss(model, batch, counts).total.backward()
            update = time.perf_counter() - began - ours  # weights stay: an untrained model has nothing to learn here
            began = time.perf_counter()
            engine.generator.generate(engine.requests)
            bare = time.perf_counter() - began
            if step:  # the first is a warm-up
                ratios.append(bare / ours)
                generated, scored = engine.seconds - generated, scorers.seconds - scored
                for name, value in (
                    ("rollout", generated), ("reward", scored), ("update", update),
                    ("rest", ours - generated - scored),
                ):  # fmt: skip
                    parts[name] += value
        objective.close()
    whole = sum(parts.values())
    result = {
        "name": "rollout", "ratio": round(statistics.median(ratios), 3), "target": 0.9,
        "runs": [round(ratio, 3) for ratio in ratios], "unit": "tokens per second of ours over the bare engine's",
        "tokens_per_s": round(ROUNDS * PROMPTS * N * TOKENS / (parts["rollout"] + parts["reward"] + parts["rest"])),
        "share": {name: round(value / whole, 3) for name, value in parts.items()},
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The trainer's loop against a bare PyTorch loop over the same packs: same model, attention, optimizer and thread.

Ours reads, decodes, packs, counts, clips, checks and reports (`training.loop.fit` with the sft objective, one worker);
the peer finds the packs ready in memory. Both compute on one thread and run in rounds that alternate; ours reads ahead
on the second core, as a trainer does beside its accelerator. So the ratio is of wall time, and needs a machine that
does nothing else; that of CPU seconds, which charges the reading too, stands beside it. The last line is one JSON
object.
"""

import json
import runpy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load as load_model
from sightloom.model.modules import module_groups
from sightloom.model.scratch import build_folder
from sightloom.objectives.language import lm_loss
from sightloom.progress import NullProgress
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.loop import fit
from sightloom.training.optim import build_optimizer, schedule_factor, set_rates
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.saver import Hooks, Saver
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.sft import Sft

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
STEPS, WARMUP, ROUNDS = 20, 4, 3
write_shards = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["write_shards"]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    alone = Workers(0, 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = write_shards(folder / "shards", 60, 120)
        manifest = read_manifest(uri)
        start = build_folder("nano", corpus_texts(manifest, 1, 1000), folder / "start", 1)
        vlm = load_model(str(start))
        encoder = Encoder(vlm.processor)
        index = index_for(manifest, start, encoder, folder, NullProgress())
        corpus = Corpus(((uri, str(index)),), 0.1)
        stage = load(Curriculum, NANO, ["data.manifest=x", "stages.1.batch.packs=1"]).stages[1]
        packer = Packer(encoder, vlm.model.config)
        model = TrainableVLM(vlm.model)
        parameters = dict(model.named_parameters())

        def fresh_optimizer() -> torch.optim.Optimizer:
            return build_optimizer(parameters, module_groups(model), stage.train.by_group(), stage.optim, alone)

        source = Sft(stage.objective, stage, corpus, packer, alone, 1)  # type: ignore[arg-type]
        packs = [source.batches(step) for step in range(WARMUP + STEPS)]
        source.close()
        tokens = sum(batch.pack.num_tokens for step in packs[WARMUP:] for batch in step)

        waits: list[float] = []

        def ours() -> Cost:
            objective = Sft(stage.objective, stage, corpus, packer, alone, 1)  # type: ignore[arg-type]
            optimizer = fresh_optimizer()
            saver = Saver(
                CheckpointStore(str(folder)), "bench", "", CheckpointOptions(every_minutes=60), alone, model, optimizer,
                Hooks(), lambda _: None,
            )  # fmt: skip

            def run(first: int, last: int) -> Cost:
                began = Cost.now()
                place = Position(first, {})
                totals = fit(
                    model, objective, optimizer, stage.optim, last, place, alone, saver, lambda *_: None, lambda _: None
                )
                if first:
                    waits.append(totals.wait_s / totals.seconds)
                return Cost.since(began)

            run(0, WARMUP)
            cost = run(WARMUP, WARMUP + STEPS)
            objective.close()
            return cost

        def bare() -> Cost:
            optimizer = fresh_optimizer()
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            began = Cost.now()
            for step, batches in enumerate(packs):
                if step == WARMUP:
                    began = Cost.now()
                optimizer.zero_grad(set_to_none=True)
                for batch in batches:
                    (lm_loss(model(batch.pack).logprobs) / batch.pack.num_labels).backward()
                torch.nn.utils.clip_grad_norm_(trained, stage.optim.clip)
                set_rates(optimizer, schedule_factor(step, WARMUP + STEPS, stage.optim))
                optimizer.step()
            return Cost.since(began)

        runs = [(ours(), bare()) for _ in range(ROUNDS)]
    rates = [[round(tokens / cost.wall_s) for cost in pair] for pair in runs]
    mine, theirs = (statistics.median(values) for values in zip(*rates, strict=True))
    result = {
        "name": "train_loop", "ours": mine, "peer": theirs, "unit": "tokens per second",
        "ratio": round(statistics.median(peer.wall_s / own.wall_s for own, peer in runs), 3), "target": 0.97,
        "cpu_ratio": round(statistics.median(peer.cpu_s / own.cpu_s for own, peer in runs), 3), "runs": rates,
        "data_wait": round(statistics.median(waits), 4), "data_wait_target": 0.02,
    }  # fmt: skip
    print(json.dumps(result))


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of the clock and of the process's CPUs."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Cost":
        """The readings."""
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, began: "Cost") -> "Cost":
        """What has passed since a reading."""
        now = cls.now()
        return cls(now.wall_s - began.wall_s, now.cpu_s - began.cpu_s)


if __name__ == "__main__":
    main()

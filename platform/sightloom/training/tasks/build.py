"""From a stage's configuration to its objective."""

from pathlib import Path

from sightloom.errors import UserMistake
from sightloom.model.load import VLM
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.engines import RolloutEngine, TransformersEngine
from sightloom.training.objective_options import (
    AlignObjective,
    DpoObjective,
    RlObjective,
    RmObjective,
    SftObjective,
)
from sightloom.training.parallel import Workers
from sightloom.training.tasks.align import Align
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.dpo import Dpo
from sightloom.training.tasks.objective import Objective
from sightloom.training.tasks.rl import Rl
from sightloom.training.tasks.rm import Rm
from sightloom.training.tasks.sft import Sft
from sightloom.training.vllm_engine import VllmEngine


def build_objective(
    stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int, vlm: VLM, folder: Path
) -> Objective:
    """The stage's objective; `vlm` writes rollouts, whose tables go to `folder`, and is copied as DPO's reference."""
    options = stage.objective
    if isinstance(options, AlignObjective):
        return Align(options, stage, corpus, packer, workers, seed)
    if isinstance(options, SftObjective):
        return Sft(options, stage, corpus, packer, workers, seed)
    if isinstance(options, DpoObjective):
        return Dpo(options, stage, corpus, packer, workers, seed, vlm)
    if isinstance(options, RmObjective):
        return Rm(options, stage, corpus, packer, workers, seed)
    engine = _engine(options, stage, workers, vlm, folder)
    return Rl(options, stage, corpus, packer, workers, seed, vlm, folder, engine)


def _engine(options: RlObjective, stage: Stage, workers: Workers, vlm: VLM, folder: Path) -> RolloutEngine:
    rollout = options.rollout
    if rollout.engine == "transformers":
        return TransformersEngine(vlm, rollout.batch_size, rollout.limit_s)
    if workers.device == "cpu":
        raise UserMistake(
            f"stage '{stage.name}': rollout.engine vllm cannot follow a policy on a CPU: when vLLM reloads there, it "
            "goes on with packed copies of the old weights",
            "set rollout.engine to transformers, or give the workers GPUs",
        )
    if workers.sharded:
        raise UserMistake(
            f"stage '{stage.name}': rollout.engine vllm is handed whole float32 weights as yet",
            "set parallel.shard 1 and precision fp32",
        )
    weights = folder / "policy" / f"{workers.rank}of{workers.world}"
    return VllmEngine(vlm, weights, stage.batch.max_tokens, rollout.batch_size, rollout.limit_s)

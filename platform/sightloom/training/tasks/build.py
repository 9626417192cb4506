"""From a stage's configuration to its objective."""

from pathlib import Path

from sightloom.errors import UserMistake
from sightloom.model.load import VLM
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import AlignObjective, DpoObjective, RmObjective, SftObjective
from sightloom.training.parallel import Workers
from sightloom.training.tasks.align import Align
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.dpo import Dpo
from sightloom.training.tasks.objective import Objective
from sightloom.training.tasks.rl import Rl
from sightloom.training.tasks.rm import Rm
from sightloom.training.tasks.sft import Sft


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
    if options.rollout.engine != "transformers":
        raise UserMistake(
            f"stage '{stage.name}': rollout.engine {options.rollout.engine} can be planned, but is not built yet",
            "set rollout.engine to transformers, with parallel.shard 1 and precision fp32",
        )
    return Rl(options, stage, corpus, packer, workers, seed, vlm, folder)

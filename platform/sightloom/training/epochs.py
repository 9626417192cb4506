"""How many steps an epoch of a stage is: as many as its packs take for as many samples as its sources hold."""

import math

from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import RlObjective
from sightloom.training.order import Order
from sightloom.training.packing import Limits, pack_window


def with_steps(stage: Stage, corpus: Corpus, seed: int) -> Stage:
    """The same stage with its length in steps.

    Raises:
        UserMistake: a source holds no sample that fits, or its expression does not compile.
    """
    if stage.epochs is None:
        return stage
    return stage.model_copy(update={"steps": _steps(stage, stage.epochs, corpus, seed), "epochs": None})


def _steps(stage: Stage, epochs: float, corpus: Corpus, seed: int) -> int:
    sources = corpus.sources(stage)
    samples = epochs * sum(len(source.rows) for source in sources)
    if isinstance(stage.objective, RlObjective):
        return max(1, math.ceil(samples / stage.objective.rollout.prompts))
    order, lengths = Order(sources, seed, stage.batch.window), corpus.lengths(stage)
    limits = Limits(stage.batch.max_tokens, stage.batch.max_patches)
    packs = 0.0
    for window in range(math.ceil(samples / stage.batch.window)):
        rows = order.window(window)
        used = min(1.0, samples / stage.batch.window - window)
        packs += used * len(pack_window(lengths[rows].tolist(), corpus.patches[rows].tolist(), limits))
    return max(1, round(packs / stage.batch.packs))

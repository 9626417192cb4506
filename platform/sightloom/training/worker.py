"""What one worker does for one stage: build model and objective, run the loop, export. It knows no Ray."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from sightloom.config import Frozen
from sightloom.errors import SightloomError
from sightloom.model import lora
from sightloom.model.chat import Encoder
from sightloom.model.heads import ContrastiveHeads, RewardHead, TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.model.modules import module_groups
from sightloom.model.stream import Filler, place_buffers, skeleton
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.consumed import ConsumptionLog
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.export import Probe, export
from sightloom.training.flops import FlopCounter, Meter, device_peak
from sightloom.training.loop import Event, Totals, fit
from sightloom.training.optim import build_optimizer
from sightloom.training.order import keyed
from sightloom.training.parallel import Workers, ensure_group
from sightloom.training.run_options import CheckpointOptions, ParallelOptions
from sightloom.training.saver import Hooks, Saver
from sightloom.training.sharding import compile_blocks, gathered, shard_model
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.build import build_objective

_PROBE_DRAW, _INIT_DRAW, _LORA_DRAW = 9, 10, 11  # purposes of the keyed draws
_NUM_PROBES: Final = 4


class StageOrder(Frozen):
    """All that a worker needs to know about a stage.

    `parts`: (manifest, length index) of the corpus; `start`: the model folder it begins with;
    `folder`: the stage's own; `store`: the address of the run's checkpoints.
    """

    number: int
    digest: str
    seed: int
    stage: Stage
    parts: tuple[tuple[str, str], ...]
    heldout: float
    start: str
    folder: str
    store: str
    checkpoint: CheckpointOptions
    info: dict[str, Any]
    parallel: ParallelOptions = ParallelOptions()
    peak_tflops: float | None = None
    pixels: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """What the stage's checkpoints are called."""
        return f"{self.stage.name}-{self.digest[:12]}"


def run_stage(
    order: StageOrder,
    workers: Workers,
    say: Callable[[Event], None],
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
) -> dict[str, Any]:
    """Run a stage from its start or its last checkpoint to the exported model; all workers call it together.

    Returns:
        On rank 0 `{steps, samples, seconds, wait_s, init, metrics, digest}`, elsewhere an empty dict.
    """
    began = time.perf_counter()
    stage = order.stage
    bfloat16 = stage.precision == "bf16"
    shares = order.parallel.holders(workers.world)
    workers = replace(workers, sharded=shares > 1 or bfloat16)
    streamed = workers.sharded and stage.train.lora is None and stage.objective.kind != "rl"  # those need it whole
    vlm = skeleton(Path(order.start), order.pixels) if streamed else load(order.start, pixels=order.pixels)
    model = _trainable(vlm, order)
    corpus = _corpus(order.parts, order.heldout)
    encoder = Encoder(vlm.processor)
    packer = Packer(encoder, vlm.model.config, workers.device)
    objective = build_objective(stage, corpus, packer, workers, order.seed, vlm, Path(order.folder))
    if order.parallel.recompute:
        vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    if not streamed:
        model.to(workers.device)
    else:
        place_buffers(model, workers.device)
        if model.heads is not None:
            model.heads.to(workers.device)
    if order.parallel.compile:
        compile_blocks(model)
    if workers.sharded:
        ensure_group()
        copies = order.parallel.copies(workers.world)
        fill = Filler(vlm.model, Path(order.start), workers.device) if streamed else None
        shard_model(model, copies, shares, workers.device, bfloat16, fill)
    groups = module_groups(model)
    if stage.train.lora is not None:
        groups["decoder"] = [name for name in groups["decoder"] if lora.is_adapter(name)]
    rates = stage.train.by_group()
    optimizer = build_optimizer(dict(model.named_parameters()), groups, rates, stage.optim, workers)
    lead = workers.rank == 0
    measures = lead or workers.sharded  # a model that is shared out answers when all ask
    saver = Saver(
        CheckpointStore(order.store), order.label, order.digest, order.checkpoint, workers, model, optimizer, hooks, say
    )
    # of the start, also where the stage goes on
    init = workers.agreed(lambda: objective.measure(model) if measures else {})
    start = saver.resume() or Position(0, {})
    if start.step:
        objective.restore(start.objective)
    model.train()
    say({"kind": "start", "step": start.step, "unusable": saver.unusable, "prepare_s": time.perf_counter() - began})
    meter = _meter(model, order, workers)
    steps = stage.num_steps
    try:
        with ConsumptionLog(Path(order.folder) / "consumed", workers) as log:
            totals = fit(model, objective, optimizer, stage.optim, steps, start, workers, saver, log.add, say, meter)
        model.eval()
        metrics = workers.agreed(lambda: objective.measure(model) if measures else {})
        if workers.sharded:
            weights = gathered(dict(vlm.model.state_dict()))
            if lead:
                vlm = load(order.start, pixels=order.pixels)
                _trainable(vlm, order).vlm.load_state_dict(weights)
        return _finish(order, vlm, model.heads, corpus, metrics, init, totals) if lead else {}
    finally:
        objective.close()
        saver.close()


def _finish(
    order: StageOrder,
    vlm: VLM,
    heads: torch.nn.Module | None,
    corpus: Corpus,
    metrics: dict[str, float],
    init: dict[str, float],
    totals: Totals,
) -> dict[str, Any]:
    lora.merge(vlm.model.cpu())
    if not all(bool(torch.isfinite(parameter).all()) for parameter in vlm.model.parameters()):
        raise SightloomError(f"stage '{order.stage.name}' ended with weights that are not finite")
    thinking = order.stage.evaluate.thinking
    head = heads if isinstance(heads, RewardHead) else None
    digest = export(vlm, Path(order.folder) / "model", order.info, _probes(corpus, order.seed), thinking, head)
    return {
        "steps": totals.steps,
        "samples": totals.samples,
        "seconds": totals.seconds,
        "wait_s": totals.wait_s,
        "skipped": totals.skipped,
        "init": init,
        "metrics": metrics,
        "digest": digest,
    }


def _meter(model: TrainableVLM, order: StageOrder, workers: Workers) -> Meter:
    stage = order.stage
    peak = device_peak(workers.device, stage.precision == "bf16", order.peak_tflops)
    capacity = None if stage.objective.kind == "rl" else stage.batch.packs * stage.batch.max_tokens
    counter = FlopCounter(model, extra_forwards=int(stage.objective.kind == "dpo"))
    return Meter(counter, capacity, None if peak is None else peak * workers.world)


def _trainable(vlm: VLM, order: StageOrder) -> TrainableVLM:
    objective, adapters = order.stage.objective, order.stage.train.lora
    if adapters is not None:
        seed = int(keyed(order.seed, _LORA_DRAW).integers(0, 2**31))
        lora.attach(vlm.model, adapters.rank, adapters.alpha, seed)
    if objective.kind not in ("align", "rm"):
        return TrainableVLM(vlm.model)
    # fresh heads: the same on every worker, and without a draw from the global generator
    state = torch.random.get_rng_state()
    torch.manual_seed(int(keyed(order.seed, _INIT_DRAW).integers(0, 2**31)))
    width = vlm.model.config.get_text_config().hidden_size
    heads = ContrastiveHeads(width, objective.contrastive) if objective.kind == "align" else RewardHead(width)
    torch.random.set_rng_state(state)
    return TrainableVLM(vlm.model, heads)


@lru_cache(maxsize=1)
def _corpus(parts: tuple[tuple[str, str], ...], heldout: float) -> Corpus:
    """The corpus, kept open from stage to stage of a warm worker."""
    return Corpus(parts, heldout)


def _probes(corpus: Corpus, seed: int) -> list[Probe]:
    rows = corpus.select(None, held_out=True)
    picked = [corpus.pick(int(row)) for row in keyed(seed, _PROBE_DRAW).permutation(rows)[:_NUM_PROBES]]
    return [
        Probe(
            item.sample.conversation.with_image() if item.image is not None else item.sample.conversation,
            item.sample.image,
        )
        for item in picked
    ]

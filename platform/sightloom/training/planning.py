"""What a run would do and cost, without doing any of it: no Ray, no worker, no weights, no file.

GPU-hours are an estimate: 6 operations a trained parameter and token (2 for each pass: forward, backward to the input,
backward to the weight), 2 a parameter and sampled token, at the shares of an H100's peak below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from sightloom.data.select.expressions import compile_expression
from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.reader import read_table
from sightloom.errors import UserMistake
from sightloom.model.load import is_hub_id
from sightloom.model.modules import Group, describe
from sightloom.model.presets import build_config, published_preset
from sightloom.tracking import NullTracker
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.export import MANIFEST, model_digest
from sightloom.training.flops import peak_flops
from sightloom.training.objective_options import RlObjective
from sightloom.training.stage_driver import StageDriver
from sightloom.training.stage_report import Start
from sightloom.training.stages import fresh_folder, given, manifests_of

_GPU: Final = "H100"
_MFU: Final = 0.40  # of training on packs
_SAMPLING_MFU: Final = 0.05  # of an engine that writes many answers at once: memory binds


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage before it is run: at most `max_tokens` pass through it; `status` is `to do` until it is finished.

    `steps` and what follows from them are None where a length in epochs cannot be known before the packs are; `usd` is
    None without a price.
    """

    name: str
    stage: str
    objective: str
    steps: int | None
    max_tokens: int | None
    gpu_hours: float | None
    usd: float | None
    status: str


def plan(curriculum: Curriculum, out: str) -> tuple[PlannedStage, ...]:
    """What a run would do.

    Raises:
        UserMistake: the manifest or a model to start from is not there (a hub id is not asked for).
    """
    folder = Path(out).absolute()
    manifests = manifests_of(curriculum)
    sizes = _sizes(curriculum)
    starts: dict[str, Start] = {}
    current: Start | None = None
    if curriculum.model.pretrained is not None:
        current = None if is_hub_id(curriculum.model.pretrained) else given(curriculum.model.pretrained)
    else:
        fresh = fresh_folder(curriculum, folder, next(iter(manifests.values())).digest)
        current = Start(fresh, model_digest(fresh), {}) if (fresh / MANIFEST).is_file() else None
    planned = []
    for number, stage in enumerate(curriculum.stages):
        if stage.init is not None:
            named = any(stage.init == earlier.name for earlier in curriculum.stages[:number])
            current = starts.get(stage.init) if named else None if is_hub_id(stage.init) else given(stage.init)
        report = None
        if current is not None and stage.steps is not None:
            driver = StageDriver(curriculum, stage, number, current, folder, (), manifests, NullTracker(), "")
            report = driver.finished()
        current = None
        if report is not None:
            current = starts[stage.name] = Start(Path(report.model_dir), report.digest, report.metrics)
        status = "to do" if report is None else report.status
        planned.append(_planned(curriculum, stage, _num_steps(curriculum, stage, manifests), sizes, status))
    return tuple(planned)


def _planned(
    curriculum: Curriculum, stage: Stage, steps: int | None, sizes: Mapping[Group, int], status: str
) -> PlannedStage:
    tokens = sampled = None
    if steps is not None:
        tokens, sampled = steps * stage.batch.packs * stage.batch.max_tokens, 0
        if isinstance(stage.objective, RlObjective):
            rollout = stage.objective.rollout
            tokens = sampled = steps * rollout.prompts * rollout.n * rollout.max_new_tokens
    hours = None
    if tokens is not None and sampled is not None and curriculum.ray.gpus_per_worker:
        peak = peak_flops(_GPU, bfloat16=stage.precision == "bf16")
        assert peak is not None
        rates = stage.train.by_group()
        passes = sum(size * (3 if rates[group] is not None else 2) for group, size in sizes.items())
        seconds = 2 * passes * tokens / (peak * _MFU) + 2 * sum(sizes.values()) * sampled / (peak * _SAMPLING_MFU)
        hours = round(seconds / 3600, 1)
    price = curriculum.tracking.usd_per_gpu_hour
    usd = None if hours is None or price is None else round(hours * price, 2)
    return PlannedStage(stage.name, stage.stage, stage.objective.kind, steps, tokens, hours, usd, status)


def _num_steps(curriculum: Curriculum, stage: Stage, manifests: Mapping[str, Any]) -> int | None:
    """The stage's steps; of epochs only where a step takes a number of prompts, not of packs."""
    if stage.epochs is None:
        return stage.num_steps
    if not isinstance(stage.objective, RlObjective):
        return None
    prompts = 0
    for source in stage.mix.values():
        table = read_table(manifests[source.manifest or curriculum.data.manifest])
        chosen = ~heldout_mask(table, curriculum.data.heldout)
        if source.where:
            chosen &= np.asarray(compile_expression(source.where, table.column_names).mask(table)).astype(bool)
        chosen &= np.asarray(table.column("answer_kind").is_valid()).astype(bool)
        prompts += int(chosen.sum())
    return max(1, math.ceil(stage.epochs * prompts / stage.objective.rollout.prompts))


def _sizes(curriculum: Curriculum) -> dict[Group, int]:
    """Parameters by part, counted without storage."""
    source, preset = curriculum.model.pretrained, curriculum.model.preset
    if source is not None and is_hub_id(source):
        preset = published_preset(source)
        if preset is None:
            return {}
    with torch.device("meta"):
        if preset is not None:
            return describe(Qwen3VLForConditionalGeneration(build_config(preset)))
        assert source is not None
        try:
            return describe(AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(given(source).folder)))
        except (OSError, ValueError, KeyError) as error:
            raise UserMistake(f"'{source}' holds no configuration of a vision-language model: {error}") from error

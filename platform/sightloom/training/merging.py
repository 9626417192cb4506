"""One model out of several that were trained from the same start: their changes added, or joined by TIES."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from peft.utils.merge_utils import ties

from sightloom.errors import UserMistake
from sightloom.model.load import VLM, load
from sightloom.training.export import INFO, MANIFEST, export, kept_probes, model_digest

Method = Literal["single", "linear", "ties"]
METHODS: Final[tuple[str, ...]] = get_args(Method)


def combine(
    changes: Sequence[torch.Tensor], weights: Sequence[float], method: Method, density: float | None
) -> torch.Tensor:
    """What is added to one tensor of the start, in float64.

    Args:
        changes: what each model's training changed, all of one shape.
        weights: of each model.
        method: `single` and `linear`: the weighted sum (Ilharco et al. 2022); `ties`: each change keeps its `density`
            largest entries, every entry's sign is elected by their weighted sum, and the mean of those that agree with
            it is taken (Yadav et al. 2023, trimmed per tensor as peft does).
    """
    weights_N = torch.tensor(weights, dtype=torch.float64)
    if method == "ties":
        assert density is not None  # merge saw to it
        changed: torch.Tensor = ties([change.double() for change in changes], weights_N, density)
        return changed
    total = torch.zeros_like(changes[0], dtype=torch.float64)
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change.double()
    return total


def merge(
    base: str, models: Sequence[str], weights: Sequence[float], method: Method, density: float | None, out: Path
) -> str:
    """Merge the exports of stages that all started from `base`, write the model folder `out` and return its digest.

    Raises:
        UserMistake: a count or the density makes no sense, `out` exists, or a model did not start from `base`.
    """
    _check(models, weights, method, density, out)
    start, others = _export(base), [_export(model) for model in models]
    digest = model_digest(_folder(start))
    infos = [json.loads((_folder(other) / INFO).read_bytes()) for other in others]
    for model, info in zip(models, infos, strict=True):
        if digest not in info.get("parents", ()):
            raise UserMistake(
                f"'{model}' was not trained from '{base}'", "merge models that share one start: give that"
            )
    parameters = [dict(other.model.named_parameters()) for other in others]
    with torch.no_grad():
        for name, parameter in start.model.named_parameters():
            changes = [theirs[name].double() - parameter.double() for theirs in parameters]
            parameter.copy_(parameter.double() + combine(changes, weights, method, density))
    parents = [digest, *(model_digest(_folder(other)) for other in others)]
    merged: dict[str, Any] = {"method": method, "weights": list(weights)}
    if method == "ties":
        merged["density"] = density
    info = {name: infos[0][name] for name in ("preset", "thinking") if name in infos[0]}
    probes = kept_probes(_folder(others[0]))
    return export(start, out, {**info, "parents": parents, "merge": merged}, probes, info["thinking"]["default"])


def _check(models: Sequence[str], weights: Sequence[float], method: Method, density: float | None, out: Path) -> None:
    if not models or len(models) != len(weights):
        raise UserMistake(f"{len(models)} models and {len(weights)} weights", "give each model one weight")
    if method not in METHODS:
        raise UserMistake(f"{method!r} is not a way to merge; known: {', '.join(METHODS)}")
    if (method == "single") != (len(models) == 1):
        raise UserMistake(f"method {method} does not take {len(models)} models", "single takes one, the others more")
    if method == "ties" and (density is None or not 0 < density < 1):
        raise UserMistake(f"density {density} is not between 0 and 1: it is the share of each change that ties keeps")
    if method != "ties" and density is not None:
        raise UserMistake(f"method {method} keeps every change whole: it takes no density")
    if out.exists():
        raise UserMistake(f"'{out}' exists", "give a folder that is not there yet")


def _export(source: str) -> VLM:
    vlm = load(source)
    if not (vlm.folder / MANIFEST).is_file():
        raise UserMistake(f"'{source}' is no model that was exported here: it has no {MANIFEST}")
    return vlm


def _folder(vlm: VLM) -> Path:
    assert vlm.folder is not None  # _export saw to it
    return vlm.folder

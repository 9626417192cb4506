"""Floating-point operations of a training step, and what share of the device's peak they are (training.md §13).

A matrix product of 2·m·n·k counts in the forward pass, once more where its input needs a gradient and once more where
its weight trains. Attention counts the causal half in the decoder, all pairs of patches in the vision tower. What is
computed again (activation checkpointing, GradCache) does not count: this is MFU, not hardware utilization.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from sightloom.model.modules import Group, group_of
from sightloom.model.packs import Pack

# Dense peaks in operations a second, from the vendor's data sheets: name contained in the device's, bf16, fp32.
_PEAKS: Final[tuple[tuple[str, float, float], ...]] = (
    ("H200", 989e12, 67e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
)
_FIRST_INPUTS: Final = ("q_proj", "k_proj", "v_proj")


def peak_flops(device: str, bfloat16: bool) -> float | None:
    """The peak of a device by its name, e.g. `NVIDIA H100 80GB HBM3`; None where it is not known."""
    for name, half, single in _PEAKS:
        if name in device:
            return half if bfloat16 else single
    return None


class FlopCounter:
    """Counts the operations of a pack's forward and backward pass.

    Args:
        model: a TrainableVLM of the Qwen-VL family, its frozen parts marked by `requires_grad`.
        extra_forwards: passes without gradient through the same model, e.g. DPO's reference.
    """

    def __init__(self, model: Any, extra_forwards: int = 0) -> None:
        config = model.vlm.config
        text, vision = config.get_text_config(), config.vision_config
        self._merge = vision.spatial_merge_size**2
        linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv3d)]
        trains = dict.fromkeys(("vision", "fusion", "decoder", "head"), False)
        for name, parameter in model.named_parameters():
            trains[_group(name)] |= parameter.requires_grad
        embeds = model.vlm.get_input_embeddings().weight.requires_grad
        seen = trains["vision"] or trains["fusion"]
        self._per = dict.fromkeys(("patch", "visual", "token", "label", "image", "text"), 0.0)
        for name, module in linears:
            if name == "vlm.lm_head":
                reached = seen or trains["decoder"]
            elif _group(name) == "vision":
                reached = trains["vision"] and not isinstance(module, nn.Conv3d)
            elif _group(name) == "decoder" and not seen and not embeds:
                first = ".layers.0." in name and any(part in _FIRST_INPUTS for part in name.split("."))
                reached = trains["decoder"] and not first
            else:
                reached = any(trains.values())
            if _group(name) == "fusion":
                reached = trains["vision"] or trains["fusion"]
            times = 1 + extra_forwards + reached + module.weight.requires_grad
            self._per[_unit(name)] += 2.0 * module.weight.numel() * times
        backward = {"decoder": seen or trains["decoder"], "vision": trains["vision"]}
        width = text.num_attention_heads * getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
        self._pairs = 2.0 * text.num_hidden_layers * width * (1 + extra_forwards + 2 * backward["decoder"])
        self._patch_pairs = 4.0 * vision.depth * vision.hidden_size * (1 + extra_forwards + 2 * backward["vision"])

    def pack(self, pack: Pack, causal: bool = True) -> float:
        """Operations of one pack; `causal: false` counts all pairs of tokens, as kernels without a mask compute."""
        if pack.num_tokens == 2 and not pack.num_labels:  # a blank one: nothing is learnt from it
            return 0.0
        lengths = pack.lengths.double()
        total = self._per["token"] * pack.num_tokens + self._per["label"] * pack.num_labels
        total += self._pairs * float((lengths * lengths).sum()) * (1 if causal else 2)
        pooled = len(pack.pool_positions)
        if pack.image_grid_thw is not None:
            frames = pack.image_grid_thw[:, 0].double()
            patches = pack.image_grid_thw[:, 1:].prod(1).double()
            num = float((frames * patches).sum())
            total += self._per["patch"] * num + self._per["visual"] * num / self._merge
            total += self._patch_pairs * float((frames * patches * patches).sum())
            total += self._per["image"] * len(pack.image_grid_thw) * (pooled > 0)
        return total + self._per["text"] * pooled


class Meter:
    """What the loop asks about the use of the devices.

    Args:
        counter: counts a pack's operations.
        capacity: tokens that a step has room for, None where its packs have no fixed size.
        peak: operations a second of all devices together, None where it is not known.
    """

    def __init__(self, counter: FlopCounter, capacity: int | None, peak: float | None) -> None:
        self._counter, self._capacity, self._peak = counter, capacity, peak

    def count(self, batches: Sequence[Any]) -> dict[str, float]:
        """Operations of this worker's micro-batches."""
        return {"flops": sum(self._counter.pack(batch.pack) for batch in batches)}

    def metrics(self, counts: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Fill of the packs, achieved operations a second and their share of the peak, over some steps."""
        found = {"speed/tflops_per_s": counts.get("flops", 0.0) / seconds / 1e12}
        if self._peak is not None:
            found["speed/mfu"] = counts.get("flops", 0.0) / seconds / self._peak
        if self._capacity is not None:
            found["data/pack_fill"] = counts.get("tokens", 0.0) / (steps * self._capacity)
        return found


def device_peak(device: str, bfloat16: bool, tflops: float | None) -> float | None:
    """The peak of a worker's device: the one that is given, or by the name of the GPU."""
    if tflops is not None:
        return tflops * 1e12
    place = torch.device(device)
    return peak_flops(torch.cuda.get_device_name(place), bfloat16) if place.type == "cuda" else None


def _group(name: str) -> Group:
    group = group_of(name)
    assert group is not None  # the module map was asked for all of them when the rates were set
    return group


def _unit(name: str) -> str:
    """What a matrix is applied to once."""
    if name == "vlm.lm_head":
        return "label"
    if name.startswith("heads."):
        return "image" if name.endswith("image") else "text"
    return {"vision": "patch", "fusion": "visual", "decoder": "token", "head": "label"}[_group(name)]

"""A model shared out over the workers: FSDP2, and HSDP where the shards are replicated (training.md §8).

Units are the ViT blocks, the decoder layers and the root; contrastive or reward heads stay whole. Gradients are sums
over all workers, as everywhere (training.md §4): FSDP's own division is switched off on every unit, for it is not
inherited. Every worker must run the same forwards, so packs without a picture look at a blank one.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree
from transformers.modeling_layers import GradientCheckpointingLayer

from sightloom.errors import UserMistake
from sightloom.model.heads import Outputs, TrainableVLM


def shard_model(
    model: TrainableVLM,
    replicate: int,
    shard: int,
    device: str = "cpu",
    bfloat16: bool = False,
    fill: Callable[[torch.nn.Module], None] | None = None,
) -> None:
    """Share the parameters of `model` out in place over `replicate` groups of `shard` workers, a process each.

    With `replicate` 1 it is plain FSDP2; a process group must exist. `bfloat16` computes in it; the weights that are
    kept, the sums of gradients and the heads stay float32. `fill` gives a unit its weights before it is shared out.
    """
    if Outputs not in _pytree.SUPPORTED_NODES:  # FSDP looks for the outputs' tensors to hook its backward to
        _pytree.register_dataclass(Outputs)
    kind = torch.device(device).type
    mesh = init_device_mesh(kind, (replicate, shard), mesh_dim_names=("replicate", "shard"))
    own = mesh if replicate > 1 else mesh["shard"]
    heads = set(model.heads.parameters()) if model.heads is not None else set()
    policy = MixedPrecisionPolicy()
    if bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in list(blocks(model)):
        if fill is not None:
            fill(block)
        fully_shard(block, mesh=own, mp_policy=policy)
    if fill is not None:
        fill(model)
    fully_shard(model, mesh=own, mp_policy=policy, ignored_params=heads)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    model.always_look = True


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile each block by itself, for any length of a pack; attention over documents stays as it is.

    Raises:
        UserMistake: there is nothing to compile with.
    """
    if not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise UserMistake("parallel.compile needs a C++ compiler on every worker", "install g++, or leave it out")
    for block in blocks(model):
        block.compile(dynamic=True)


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers of the vision tower and of the decoder."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def reduce_at(model: torch.nn.Module, last: bool) -> None:
    """Let gradients meet after the last micro-batch alone; nothing to do for a model that is not shared out."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their joint norm over all workers is at most `limit`; returns the norm before."""
    parts = [[p for p in parameters if isinstance(p, DTensor) == shared] for shared in (False, True)]
    norms = [_norm(part) for part in parts if part]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for part in parts:
        if part:
            torch.nn.utils.clip_grads_with_norm_(part, limit, norm)
    return float(norm)


def _norm(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gathered(tree: Any) -> Any:
    """The same nest of dictionaries and lists with every shared tensor whole; all workers call it together."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gathered(value) for value in tree]
    return tree


def like(whole: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all workers, in the form in which `example` of the same shape is held."""
    if not isinstance(example, DTensor) or whole.shape != example.shape:
        return whole
    return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)

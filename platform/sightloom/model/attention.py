"""Attention over packs: many documents in one row of tokens, none of which sees another.

Registered with transformers as `sightloom_flash`; "flash" in the name sends the vision tower down its `cu_seqlens`
path. Isolation holds by construction, there is no mask to get wrong: each document's rows are gathered, and documents
that share their beginning (`Pack.chains`) gather the same rows. With no document boundaries given (generation with
a cache) it is plain scaled dot-product attention under the caller's mask.

Shapes: H heads, L tokens of the pack, N documents of a bucket, T tokens of its longest, E head width.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from sightloom.model.packs import Chains

NAME: Final = "sightloom_flash"


def register(model: Any) -> None:
    """Make `model` and its vision and text parts attend through `sightloom_flash`.

    The name is set on the configurations directly: `set_attn_implementation` would look for a flash-attention package.
    """
    AttentionInterface.register(NAME, packed_attention)
    for config in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
        if config is not None:
            config._attn_implementation = NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    chains: Chains | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [1, H, L, E] → [1, L, H, E] inside the documents bounded by `cu_seq_lens_q` [documents + 1].

    With `chains` these bound pieces, and a document is a chain of them.

    Keys and values may have fewer heads (grouped queries). Dropout is refused.
    """
    if dropout:
        raise ValueError("packed attention has no dropout")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if cu_seq_lens_q is None:
        causal = causal and attention_mask is None and query.shape[2] > 1
        return _dense(query, key, value, attention_mask, scaling, causal), None
    if query.is_cuda:
        window = (-1, 0) if causal else (-1, -1)
        longest = int(max_length_q or (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).max())
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        cu, order = cu_seq_lens_q.to(torch.int32), None
        if chains is not None:
            rows, order = _rows_of(tuple(cu.tolist()), chains)
            lengths = torch.tensor([0, *map(len, rows)], dtype=torch.int32, device=q.device)
            cu, gather = lengths.cumsum(0, dtype=torch.int32), torch.cat(rows).to(q.device)
            q, k, v = (states.index_select(0, gather) for states in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        out: Any = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scaling, window_size=window, enable_gqa=gqa)
        return (out if order is None else out.index_select(0, order.to(out.device)))[None], None
    return _bucketed(query, key, value, scaling, causal, cu_seq_lens_q, chains), None


@torch.compiler.disable  # its shapes are the documents', which differ in every pack
def _bucketed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    boundaries: torch.Tensor,
    chains: Chains | None,
) -> torch.Tensor:
    buckets = _buckets(tuple(boundaries.tolist()), causal, chains)
    if not len(buckets[0].order):
        num, length = buckets[0].shape
        q, k, v = (states[0].unflatten(1, (num, length)).transpose(0, 1) for states in (query, key, value))
        return _dense(q, k, v, None, scaling, causal).reshape(1, num * length, query.shape[1], -1)
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    parts = []
    for bucket in buckets:
        q, k, v = (states.index_select(0, bucket.gather).unflatten(0, bucket.shape).transpose(1, 2) for states in rows)
        parts.append(_dense(q, k, v, None, scaling, causal).flatten(0, 1))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.index_select(0, buckets[0].order)[None]


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, causal: bool
) -> torch.Tensor:
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


class _Bucket:
    """Documents of similar length as one padded batch: `gather` fills it, `order` puts all buckets' rows back."""

    def __init__(self, shape: tuple[int, int], gather: torch.Tensor) -> None:
        self.shape = shape
        self.gather = gather
        self.order: torch.Tensor = gather


@lru_cache(maxsize=256)
def _buckets(boundaries: tuple[int, ...], causal: bool, chains: Chains | None) -> list[_Bucket]:
    rows, _ = _rows_of(boundaries, chains)
    lengths = [len(row) for row in rows]
    if chains is None and len(set(lengths)) == 1:
        return [_Bucket((len(lengths), lengths[0]), torch.empty(0))]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    buckets: list[_Bucket] = []
    place = torch.empty(boundaries[-1], dtype=torch.int64)
    offset = 0
    while order:
        longest = lengths[order[0]]
        # Behind a document's end a causal row may be padded; without the causal mask only equal lengths go together.
        shortest = longest / 2 if causal else longest
        members = [index for index in order if lengths[index] >= shortest]
        order = order[len(members) :]
        gather = torch.zeros(len(members), longest, dtype=torch.int64)
        for number, index in enumerate(members):
            gather[number, : lengths[index]] = rows[index]
            start = offset + number * longest
            place[rows[index]] = torch.arange(start, start + lengths[index])  # what is shared is alike in all copies
        buckets.append(_Bucket((len(members), longest), gather.flatten()))
        offset += len(members) * longest
    for bucket in buckets:
        bucket.order = place
    return buckets


def _rows_of(boundaries: tuple[int, ...], chains: Chains | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The positions of each document, and for each position of the pack its place when they are laid end to end."""
    pieces = [torch.arange(start, end) for start, end in pairwise(boundaries)]
    if chains is None:
        return pieces, torch.arange(boundaries[-1])
    rows = [torch.cat([pieces[index] for index in chain]) for chain in chains]
    order = torch.empty(boundaries[-1], dtype=torch.int64)
    offset = 0
    for row in rows:
        order[row] = torch.arange(offset, offset + len(row))
        offset += len(row)
    return rows, order

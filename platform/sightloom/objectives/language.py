"""The language-modelling loss: log-probabilities of tokens without the full logits of a pack.

Shapes: M labelled positions, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sightloom.objectives.entropy import token_entropy
from sightloom.objectives.precision import widened

_Scores = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor | None], tuple[torch.Tensor, ...]]
CHUNK_LOGITS: Final = 2**27  # float32 logits that are held at once: 512 MB
# Of a token that is never written: exp() of it is 0, and 0 · z stays a number in the entropy, unlike that of -inf.
_NEVER: Final = -1e30


def token_logprobs(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    temperature: float = 1.0,
    never: torch.Tensor | None = None,
) -> torch.Tensor:
    """log π(target) float32 [M] of the softmax of hidden · weightᵀ / temperature.

    Args:
        never: ids int64 that π has no mass on, as they are never sampled; no target may be one of them.
    """
    return _chunked(_logprobs, hidden_MD, weight_VD, targets_M, temperature, never)[0]


def token_logprobs_and_entropy(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    temperature: float = 1.0,
    never: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π(target) and the entropy of π in nats, float32 [M] each, both with gradient; arguments as above."""
    logprobs_M, entropy_M = _chunked(_logprobs_and_entropy, hidden_MD, weight_VD, targets_M, temperature, never)
    return logprobs_M, entropy_M


def lm_loss(logprobs_M: torch.Tensor, weights_M: torch.Tensor | None = None) -> torch.Tensor:
    """Σ w·(−log π): divide it by the global Σ w of all ranks and micro-batches, never by a local mean."""
    return -(logprobs_M if weights_M is None else logprobs_M * weights_M).sum()


def _logits(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, temperature: float, never: torch.Tensor | None
) -> torch.Tensor:
    logits_MV = widened(hidden_MD @ weight_VD.T) / temperature
    return logits_MV if never is None else logits_MV.index_fill(1, never, _NEVER)


def _logprobs(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    temperature: float,
    never: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    logits_MV = _logits(hidden_MD, weight_VD, temperature, never)
    return (-F.cross_entropy(logits_MV, targets_M, reduction="none"),)


def _logprobs_and_entropy(
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    temperature: float,
    never: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    logits_MV = _logits(hidden_MD, weight_VD, temperature, never)
    return -F.cross_entropy(logits_MV, targets_M, reduction="none"), token_entropy(logits_MV)


def _chunked(
    function: _Scores,
    hidden_MD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_M: torch.Tensor,
    temperature: float,
    never: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    rows = max(1, CHUNK_LOGITS // weight_VD.shape[0])
    if len(targets_M) <= rows:
        return function(hidden_MD, weight_VD, targets_M, temperature, never)
    parts = [
        checkpoint(function, hidden, weight_VD, targets, temperature, never, use_reentrant=False)
        for hidden, targets in zip(hidden_MD.split(rows), targets_M.split(rows), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))

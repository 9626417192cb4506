"""Choosing the next token of many rows at once, each row with its own temperature, filters and random stream.

Tokens that stand for a picture belong to prompts alone: they are never written, whatever their logits.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

_OF_PICTURES: Final = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def never_written(config: Any) -> torch.Tensor:
    """Ids int64, ascending, of the tokens that a model with this configuration reads but must not write."""
    ids = {getattr(config, name, None) for name in _OF_PICTURES}
    return torch.tensor(sorted(token for token in ids if token is not None), dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row chooses. Temperature 0 takes the likeliest token; top_p 1 and top_k 0 filter nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0 are needed, got {self}")


class Sampler:
    """Chooses tokens for the rows of a batch; exact, and a row chooses the same alone and among others.

    The Gumbel trick: argmax p / E with E = −log U ~ Exp(1) is a draw from p. Each sampling row takes U from a generator
    of its own, so its choice depends on its seed and its position only.
    """

    def __init__(self, rows: Sequence[Sampling], device: torch.device) -> None:
        self._rows = list(rows)
        self._device = device
        self._generators = [
            torch.Generator(device).manual_seed(row.seed & (2**63 - 1)) if row.temperature > 0 else None for row in rows
        ]
        self._prepare()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._rows = [self._rows[row] for row in rows]
        self._generators = [self._generators[row] for row in rows]
        self._prepare()

    def choose(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 [B] and log-probabilities float32 [B, V] under the distribution that they were drawn from.

        For a row of temperature 0 that is the model's own distribution.
        """
        logprobs_BV = torch.log_softmax(logits_BV.float() / self._temperature_B1, dim=-1)
        if self._filters:
            logprobs_BV = _filtered(logprobs_BV, self._top_p_B1, self._top_k)
        if not self._samples:
            return logprobs_BV.argmax(-1), logprobs_BV
        uniform_BV = torch.full_like(logprobs_BV, torch.e**-1)  # E = 1, no noise, where nothing is drawn
        for row, generator in enumerate(self._generators):
            if generator is not None:
                torch.rand(uniform_BV.shape[1], generator=generator, out=uniform_BV[row])
        return (logprobs_BV - uniform_BV.log_().neg_().log_()).argmax(-1), logprobs_BV

    def _prepare(self) -> None:
        self._samples = any(generator is not None for generator in self._generators)
        temperatures = [row.temperature or 1.0 for row in self._rows]
        self._temperature_B1 = torch.tensor(temperatures, device=self._device)[:, None]
        # A greedy row is never filtered: its choice is the top anyway, and its log-probabilities stay the model's own.
        self._filters = any(row.temperature > 0 and (row.top_p < 1 or row.top_k > 0) for row in self._rows)
        self._top_p_B1 = torch.tensor(
            [row.top_p if row.temperature > 0 else 1.0 for row in self._rows], device=self._device
        )[:, None]
        self._top_k = torch.tensor([row.top_k if row.temperature > 0 else 0 for row in self._rows], device=self._device)


def _filtered(logprobs_BV: torch.Tensor, top_p_B1: torch.Tensor, top_k_B: torch.Tensor) -> torch.Tensor:
    """Keep each row's top_k likeliest tokens (0 = all), of them the smallest set of mass ≥ top_p, and renormalise."""
    ordered, indices = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logprobs_BV.shape[1], device=logprobs_BV.device)
    limit_B1 = torch.where(top_k_B > 0, top_k_B, logprobs_BV.shape[1])[:, None]
    ordered = ordered.masked_fill(rank_V >= limit_B1, -torch.inf).log_softmax(-1)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill((mass_before >= top_p_B1) & (top_p_B1 < 1), -torch.inf).log_softmax(-1)
    return torch.empty_like(ordered).scatter_(1, indices, ordered)

"""Our policy losses against TRL's own code on equal log-probabilities, advantages and masks."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from sightloom.objectives.kl import k3
from sightloom.objectives.policy import Totals, aggregate, cispo_loss, clip_loss, gspo_loss, mismatch_weight

LENGTHS = [5, 2, 7, 1, 4, 7]
LONGEST = 7
LIMIT = 16  # max_new_tokens
MASK = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
OWNER = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
TOTALS = Totals(float(sum(LENGTHS)), float(len(LENGTHS)), LIMIT)


@pytest.fixture
def drawn() -> dict[str, torch.Tensor]:
    """Log-probabilities [B, T] of policy, old policy, engine and reference; advantages [B]. float64."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logprobs = -draw(6, LONGEST).abs()
    return {
        "logprobs": logprobs.clone().requires_grad_(),
        "old": logprobs + 0.3 * draw(6, LONGEST),
        "engine": logprobs + 0.8 * draw(6, LONGEST),
        "reference": logprobs + 0.5 * draw(6, LONGEST),
        "advantages": draw(6),
    }


class _Alone:
    """An accelerator of one process."""

    num_processes = 1

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value


def trl_loss(
    drawn: dict[str, torch.Tensor],
    loss_type: str,
    low: float,
    high: float,
    level: str = "token",
    beta: float = 0.0,
    correction: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `GRPOTrainer` computes, without a model: it is handed the log-probabilities."""
    logprobs = drawn["logprobs"]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=beta,
        importance_sampling_level=level, loss_type=loss_type, epsilon_low=low, epsilon_high=high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), use_vllm=correction is not None,
        vllm_importance_sampling_correction=True, model=torch.nn.Identity().eval(), max_completion_length=LIMIT,
        accelerator=_Alone(), _entropy_bonus_enabled=False, _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(6, 1, dtype=torch.int64), "prompt_mask": torch.ones(6, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(6, LONGEST, dtype=torch.int64), "completion_mask": MASK.long(),
        "advantages": drawn["advantages"], "old_per_token_logps": drawn["old"],
        "ref_per_token_logps": drawn["reference"], "num_items_in_batch": MASK.sum(),
        "importance_sampling_ratio": correction,
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def flat(values: torch.Tensor) -> torch.Tensor:
    return values[MASK]


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor, logprobs: torch.Tensor) -> None:
    """Equal losses and equal gradients."""
    (mine,) = torch.autograd.grad(ours, logprobs)
    (wanted,) = torch.autograd.grad(theirs, logprobs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # float64, fewer than 30 terms
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    assert wanted.abs().sum() > 0


@pytest.mark.parametrize(("loss_type", "how"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
def test_the_clipped_losses_are_trls(drawn, loss_type: str, how) -> None:
    advantages = flat(drawn["advantages"][:, None].expand(-1, LONGEST))
    token = clip_loss(flat(drawn["logprobs"]), flat(drawn["old"]), advantages, 0.2, 0.28)
    assert token.clipped_M.any()
    ours = aggregate(token.loss_M, OWNER, len(LENGTHS), how, TOTALS)
    assert_alike(ours, trl_loss(drawn, loss_type, 0.2, 0.28), drawn["logprobs"])


def test_gspo_is_trls_grpo_with_one_ratio_a_response(drawn) -> None:
    advantages = flat(drawn["advantages"][:, None].expand(-1, LONGEST))
    token = gspo_loss(flat(drawn["logprobs"]), flat(drawn["old"]), advantages, OWNER, len(LENGTHS), 0.03, 0.04)
    ours = aggregate(token.loss_M, OWNER, len(LENGTHS), "sequence", TOTALS)
    assert_alike(ours, trl_loss(drawn, "grpo", 0.03, 0.04, level="sequence"), drawn["logprobs"])


def test_cispo_is_trls_whose_bound_is_the_weight_itself(drawn) -> None:
    advantages = flat(drawn["advantages"][:, None].expand(-1, LONGEST))
    token = cispo_loss(flat(drawn["logprobs"]), flat(drawn["old"]), advantages, high=0.3)
    assert token.clipped_M.any()
    ours = aggregate(token.loss_M, OWNER, len(LENGTHS), "token", TOTALS)
    assert_alike(ours, trl_loss(drawn, "cispo", 0.2, 1.3), drawn["logprobs"])


def test_the_correction_of_an_engines_mismatch_is_trls_truncated_one(drawn) -> None:
    cap = 2.0
    advantages = flat(drawn["advantages"][:, None].expand(-1, LONGEST))
    weight = mismatch_weight(flat(drawn["old"]), flat(drawn["engine"]), cap)
    assert (weight == cap).any() and (weight < cap).any()
    token = clip_loss(flat(drawn["logprobs"]), flat(drawn["old"]), advantages, 0.2, 0.2)
    ours = aggregate(token.loss_M * weight, OWNER, len(LENGTHS), "token", TOTALS)
    correction = (drawn["old"] - drawn["engine"]).exp().clamp(max=cap)  # as TRL's token_truncate makes it
    assert_alike(ours, trl_loss(drawn, "dapo", 0.2, 0.2, correction=correction), drawn["logprobs"])


def test_the_kl_term_is_trls(drawn) -> None:
    advantages = flat(drawn["advantages"][:, None].expand(-1, LONGEST))
    loss = clip_loss(flat(drawn["logprobs"]), flat(drawn["old"]), advantages, 0.2, 0.2).loss_M
    loss = loss + 0.04 * k3(flat(drawn["logprobs"]), flat(drawn["reference"]))
    ours = aggregate(loss, OWNER, len(LENGTHS), "sequence", TOTALS)
    assert_alike(ours, trl_loss(drawn, "grpo", 0.2, 0.2, beta=0.04), drawn["logprobs"])

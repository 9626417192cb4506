import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightloom.objectives.entropy import band_distance, band_loss, band_slope, token_entropy
from sightloom.objectives.kl import ESTIMATORS, k3, k3_k2grad
from sightloom.objectives.policy import Totals, aggregate, cispo_loss, clip_loss, gspo_loss, mismatch_weight

LENGTHS = [3, 1, 0, 5]


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logprobs, old = (-torch.rand(9, generator=generator) * 3 for _ in range(2))
    response = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    return logprobs.requires_grad_(), old, torch.randn(4, generator=generator)[response], response


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_loss_and_aggregate_equal_a_plain_loop(how, dual: float | None) -> None:
    logprobs, old, advantages, response = tokens()
    ours = clip_loss(logprobs, old, advantages, 0.2, 0.3, dual)
    sums = [0.0] * 4
    for i in range(9):
        ratio, advantage = math.exp(float(logprobs[i] - old[i])), float(advantages[i])
        loss = -min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
        if dual is not None and advantage < 0:
            loss = min(loss, -dual * advantage)
        assert float(ours.loss_M[i]) == pytest.approx(loss, rel=1e-5)
        sums[int(response[i])] += loss
    wanted = {
        "token": sum(sums) / 9,
        "sequence": sum(s / max(n, 1) for s, n in zip(sums, LENGTHS, strict=True)) / 4,
        "constant": sum(sums) / (4 * 16),
    }[how]
    totals = Totals(tokens=9, responses=4, max_new_tokens=16)
    assert float(aggregate(ours.loss_M, response, 4, how, totals)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_micro_batches_add_up_to_the_whole(how) -> None:
    logprobs, old, advantages, response = tokens()
    totals = Totals(9, 4, 16)
    loss = clip_loss(logprobs, old, advantages).loss_M
    whole = aggregate(loss, response, 4, how, totals)
    parts = aggregate(loss[:4], response[:4], 2, how, totals) + aggregate(loss[4:], response[4:] - 2, 2, how, totals)
    torch.testing.assert_close(parts, whole)


def test_clipped_tokens_give_no_gradient_and_the_others_do() -> None:
    logprobs, old, advantages, _ = tokens()
    out = clip_loss(logprobs, old, advantages, 0.2, 0.2, 3.0)
    (gradient,) = torch.autograd.grad(out.loss_M.sum(), logprobs)
    assert out.clipped_M.any() and not out.clipped_M.all()
    assert torch.equal(gradient == 0, out.clipped_M)


def test_on_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    logprobs, _, advantages, _ = tokens()
    (gradient,) = torch.autograd.grad(clip_loss(logprobs, logprobs, advantages).loss_M.sum(), logprobs)
    torch.testing.assert_close(gradient, -advantages)


@pytest.mark.parametrize("sign", [1, -1])
def test_gspo_is_the_clipped_loss_of_one_ratio_a_response(sign: int) -> None:
    logprobs, old, advantages, response = tokens()
    ours = gspo_loss(logprobs, old, sign * advantages, response, 4, 0.01, 0.02)
    total = aggregate(ours.loss_M, response, 4, "sequence", Totals(9, 4, 16))
    wanted = 0 * logprobs.sum()
    for number, length in enumerate(LENGTHS):
        mine = response == number
        if length:
            ratio = ((logprobs - old)[mine].sum() / length).exp()
            advantage = sign * advantages[mine][0]
            wanted = wanted - torch.minimum(ratio * advantage, ratio.clamp(0.99, 1.02) * advantage) / 4
    torch.testing.assert_close(total, wanted)
    gradients = [torch.autograd.grad(each, logprobs, retain_graph=True)[0] for each in (total, wanted)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(gradients[0] == 0, ours.clipped_M)
    other = gspo_loss(logprobs, old, -sign * advantages, response, 4, 0.01, 0.02)
    assert (ours.clipped_M ^ other.clipped_M).all()  # every ratio here is outside the range, so one sign is clipped


def test_cispo_cuts_the_weight_and_keeps_the_gradient_of_every_token() -> None:
    logprobs, old, advantages, _ = tokens()
    ours = cispo_loss(logprobs, old, advantages, high=0.5)
    (gradient,) = torch.autograd.grad(ours.loss_M.sum(), logprobs)
    weight = (logprobs.detach() - old).exp().clamp(max=1.5)
    torch.testing.assert_close(gradient, -weight * advantages)
    assert torch.equal(ours.clipped_M, (logprobs - old).exp() > 1.5) and ours.clipped_M.any()


def test_on_policy_all_losses_have_one_gradient_when_aggregated_alike() -> None:
    logprobs, _, advantages, response = tokens()
    old = logprobs.detach()
    losses = (
        clip_loss(logprobs, old, advantages),
        gspo_loss(logprobs, old, advantages, response, 4),
        cispo_loss(logprobs, old, advantages),
    )
    totals = Totals(9, 4, 16)
    clip, gspo, cispo = (
        torch.autograd.grad(aggregate(loss.loss_M, response, 4, "sequence", totals), logprobs)[0] for loss in losses
    )
    torch.testing.assert_close(clip, cispo)
    torch.testing.assert_close(clip, gspo)


def test_the_mismatch_weight_is_capped_and_carries_no_gradient() -> None:
    old = torch.tensor([0.0, -1.0], requires_grad=True)
    weight = mismatch_weight(old, torch.tensor([-5.0, -1.0]), cap=2.0)
    assert weight.tolist() == [2.0, 1.0] and not weight.requires_grad


def test_unknown_choices_are_refused() -> None:
    logprobs, old, advantages, response = tokens()
    with pytest.raises(ValueError, match="dual_clip"):
        clip_loss(logprobs, old, advantages, dual_clip=0.5)
    with pytest.raises(ValueError, match="known: token, sequence, constant"):
        aggregate(logprobs, response, 4, "mean", Totals(9, 4, 16))  # type: ignore[arg-type]


def softmax_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(16, generator=generator, dtype=torch.float64).requires_grad_()
    return policy, torch.randn(16, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize(("name", "cosine"), [("k2", 1.0), ("k3_k2grad", 1.0), ("k1", None), ("k3", 0.9)])
def test_kl_estimators_as_losses_have_the_gradient_that_is_said_of_them(name: str, cosine: float | None) -> None:
    """On-policy expected gradients over all 16 outcomes, against that of the exact KL."""
    policy, reference = softmax_case()
    logprobs = policy.log_softmax(-1)
    (truth,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), policy, retain_graph=True)
    expected = (logprobs.exp().detach() * ESTIMATORS[name](logprobs, reference)).sum()
    (gradient,) = torch.autograd.grad(expected, policy)
    if cosine is None:
        assert gradient.abs().max() < 1e-12
    elif cosine == 1.0:
        torch.testing.assert_close(gradient, truth)
    else:
        assert torch.cosine_similarity(gradient, truth, dim=0) < cosine


def test_the_value_of_k3_is_unbiased_and_never_negative() -> None:
    policy, reference = softmax_case()
    logprobs = policy.log_softmax(-1)
    truth = (logprobs.exp() * (logprobs - reference)).sum()
    torch.testing.assert_close((logprobs.exp() * k3_k2grad(logprobs, reference)).sum(), truth)
    assert (k3(logprobs, reference) >= 0).all()


def test_entropy_is_torchs_and_a_step_along_the_band_loss_moves_it_into_the_band() -> None:
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    entropy = token_entropy(logits)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())
    task = torch.tensor([0, 0, 0, 1, 1, 1])
    means = torch.stack([entropy[:3].mean(), entropy[3:].mean(), torch.tensor(0.0)]).detach()
    bands = torch.tensor([[0.0, 0.1], [5.0, 6.0], [1.0, 2.0]])
    (gradient,) = torch.autograd.grad(band_loss(entropy, task, means, torch.tensor([3, 3, 0]), bands), logits)
    moved = token_entropy(logits - gradient)
    assert moved[:3].mean() < means[0] and moved[3:].mean() > means[1]
    inside = torch.tensor([[0.0, 9.0]]).repeat(3, 1)
    assert band_loss(entropy, task, means, torch.tensor([3, 3, 0]), inside) == 0


@given(entropy=st.floats(0, 5), low=st.floats(0, 2), width=st.floats(0, 2))
def test_the_slope_is_the_derivative_of_the_distance(entropy: float, low: float, width: float) -> None:
    high, step = low + width, 1e-6
    if min(abs(entropy - low), abs(entropy - high)) > 2 * step:
        rise = band_distance(entropy + step, low, high) - band_distance(entropy - step, low, high)
        assert band_slope(entropy, low, high) == pytest.approx(rise / (2 * step), abs=1e-3)

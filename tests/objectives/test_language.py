import pytest
import torch

from sightloom.objectives import language
from sightloom.objectives.language import lm_loss, token_logprobs, token_logprobs_and_entropy


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(50, 8, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(50, (23,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_full_logits_in_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    hidden, weight, targets = inputs()
    full = (hidden @ weight.T / temperature).log_softmax(-1)
    logprobs, entropy = full.gather(1, targets[:, None])[:, 0], -(full.exp() * full).sum(-1)
    wanted = torch.autograd.grad(lm_loss(logprobs) + 2 * entropy.sum(), [hidden, weight])
    monkeypatch.setattr(language, "CHUNK_LOGITS", 50 * 5)
    ours, ours_entropy = token_logprobs_and_entropy(hidden, weight, targets, temperature)
    torch.testing.assert_close(ours, logprobs)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets, temperature), logprobs)
    torch.testing.assert_close(ours_entropy, entropy)
    got = torch.autograd.grad(lm_loss(ours) + 2 * ours_entropy.sum(), [hidden, weight])
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_sums_over_uneven_micro_batches_add_up_to_the_whole() -> None:
    logprobs, weights = torch.randn(9), torch.rand(9)
    parts = lm_loss(logprobs[:2], weights[:2]) + lm_loss(logprobs[2:], weights[2:])
    torch.testing.assert_close(parts, lm_loss(logprobs, weights))


def test_no_label_is_a_loss_of_zero() -> None:
    hidden, weight, targets = inputs()
    loss = lm_loss(token_logprobs(hidden[:0], weight, targets[:0]))
    assert loss == 0
    loss.backward()

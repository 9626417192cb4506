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


def test_tokens_never_written_have_no_mass_as_if_their_columns_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _ = inputs()
    targets = torch.arange(23) + 5
    never = torch.tensor([0, 2, 49])
    left = torch.tensor([token for token in range(50) if token not in never.tolist()])
    full = (hidden @ weight[left].T / 0.7).log_softmax(-1)
    logprobs = full.gather(1, torch.searchsorted(left, targets)[:, None])[:, 0]
    entropy = -(full.exp() * full).sum(-1)
    wanted = torch.autograd.grad(lm_loss(logprobs) + 2 * entropy.sum(), [hidden, weight])
    monkeypatch.setattr(language, "CHUNK_LOGITS", 50 * 5)
    ours, ours_entropy = token_logprobs_and_entropy(hidden, weight, targets, 0.7, never)
    torch.testing.assert_close(ours, logprobs)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets, 0.7, never), logprobs)
    torch.testing.assert_close(ours_entropy, entropy)
    for mine, other in zip(
        torch.autograd.grad(lm_loss(ours) + 2 * ours_entropy.sum(), [hidden, weight]), wanted, strict=True
    ):
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

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from sightloom.objectives.contrastive import clip_loss, siglip_loss


def features(n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, 16, generator=generator), dim=-1).requires_grad_() for _ in range(2)]


def test_clip_equals_open_clip() -> None:
    image, text = features(12)
    log_scale = torch.tensor(2.3, requires_grad=True)
    ours = clip_loss(image, text, log_scale) / 12
    theirs = ClipLoss()(image, text, log_scale.exp())
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, [image, text, log_scale]),
        torch.autograd.grad(theirs, [image, text, log_scale]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_siglip_equals_open_clip() -> None:
    image, text = features(12)
    log_scale, bias = torch.tensor(2.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    ours = siglip_loss(image, text, log_scale, bias) / 12
    theirs = SigLipLoss()(image, text, log_scale.exp(), bias)
    torch.testing.assert_close(ours, theirs)
    leaves = [image, text, log_scale, bias]
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_ranks_together_equal_one(kind: str) -> None:
    image, text = features(8)
    extra = [torch.tensor(2.0)] + ([torch.tensor(-5.0)] if kind == "siglip" else [])
    loss = {"clip": clip_loss, "siglip": siglip_loss}[kind]
    whole = loss(image, text, *extra)

    def gather(local: torch.Tensor) -> torch.Tensor:  # both ranks live here, so gradients flow
        return image if local.data_ptr() in (image[:5].data_ptr(), image[5:].data_ptr()) else text

    parts = sum(
        loss(image[rows], text[rows], *extra, gather=gather, offset=rows.start) for rows in (slice(0, 5), slice(5, 8))
    )
    torch.testing.assert_close(parts, whole)
    for mine, other in zip(
        torch.autograd.grad(parts, [image, text]), torch.autograd.grad(whole, [image, text]), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_the_scale_is_held_to_a_hundred() -> None:
    image, text = features(4)
    torch.testing.assert_close(
        clip_loss(image, text, torch.tensor(50.0)), clip_loss(image, text, torch.tensor(100.0).log())
    )

import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from sightloom.data.signals.clip import ClipModel, encode_text, in_batches, rank_auc
from sightloom.data.signals.config import ClipScorer
from sightloom.data.signals.crops import crop
from sightloom.data.signals.scorers import MEAN, STD, is_weights_file, resolve
from sightloom.errors import UserMistake

ATOL = 1e-4  # what the issue asks; fp32, worst measured below 1e-6: only the order of additions differs
TEXTS = ["a cat", "", "a very long caption " * 10, "a red square on the left of a blue circle", "a cat", "🙂 שלום"]


def plain_loop(model_name: str, images: list[Image.Image], texts: list[str], **more: Any) -> np.ndarray[Any, Any]:
    """What anybody would write with open_clip: one pair at a time, the whole context."""
    model, _, preprocess = open_clip.create_model_and_transforms(model_name, **more)
    tokenizer = open_clip.get_tokenizer(model_name)
    model.eval()
    scores = []
    with torch.no_grad():
        for image, text in zip(images, texts, strict=True):
            one = model.encode_image(preprocess(image)[None], normalize=True)
            other = model.encode_text(tokenizer([text]), normalize=True)
            scores.append(float((one * other).sum()))
    return np.array(scores)


def test_scores_equal_a_plain_open_clip_loop(tiny_clip: Path, scene: Any) -> None:
    sizes = [(48, 48), (30, 90), (200, 100), (64, 64), (48, 48), (32, 32)]
    images = [Image.open(io.BytesIO(scene(n, size))).convert("RGB") for n, size in enumerate(sizes)]
    spec = resolve(ClipScorer(name="tiny", model=f"local-dir:{tiny_clip}", batch=4))
    crops = np.stack([crop(image, spec.crop) for image in images])
    ours = ClipModel(spec, "cpu").score(crops, TEXTS)
    theirs = plain_loop(f"local-dir:{tiny_clip}", images, TEXTS)
    assert np.abs(ours.cosine_N - theirs).max() <= ATOL
    assert ours.image_ND.shape == (6, 32) and ours.auc_rolled is not None


def test_models_and_their_pictures_are_known_as_open_clip_knows_them() -> None:
    assert (MEAN, STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    for name in ("ViT-B-32", "ViT-SO400M-14-SigLIP", "RN50"):
        config = open_clip.get_model_config(name)
        spec = resolve(ClipScorer(name="a", model=name))
        assert (spec.dim, spec.crop.side) == (config["embed_dim"], config["vision_cfg"]["image_size"])


def test_a_file_of_weights_is_told_from_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("openai", "mine.pt"):
        (tmp_path / name).write_bytes(b"w")
    found = {name: is_weights_file(name) for name in ("openai", "./openai", "mine.pt", "gone.pt", "no/where")}
    assert found == {"openai": False, "./openai": True, "mine.pt": True, "gone.pt": False, "no/where": False}


def test_a_cut_context_changes_nothing_that_can_be_seen(tiny_clip: Path) -> None:
    model = open_clip.create_model(f"local-dir:{tiny_clip}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(TEXTS[:2])
    with torch.no_grad():
        assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens), atol=1e-6)


def test_a_batch_that_memory_does_not_hold_is_halved_and_one_row_that_it_does_not_is_an_error() -> None:
    asked: list[int] = []

    def encode(rows: slice, most: int = 3) -> torch.Tensor:
        size = min(10, rows.stop) - rows.start
        asked.append(size)
        if size > most:
            raise torch.OutOfMemoryError
        return torch.arange(rows.start, rows.start + size)

    assert in_batches(encode, 10, 8).tolist() == list(range(10)) and asked == [8, 4, 2, 2, 2, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(lambda rows: encode(rows, 0), 10, 8)


def test_random_weights_are_named_by_their_seed() -> None:
    first, second, third = (
        resolve(ClipScorer(name="a", model="ViT-B-32", seed=seed)).weights_sha256 for seed in (0, 0, 1)
    )
    assert first == second != third


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ({"model": "ViT-Z-99"}, "no open_clip model"),
        ({"model": "hf-hub:some/model"}, "no open_clip model"),
        ({"model": "../open_clip_config"}, "no open_clip model"),
        ({"model": "ViT-B-32", "pretrained": "nobody"}, "neither a file nor a pretrained tag"),
        ({"model": "local-dir:/nowhere/at/all"}, "no folder"),
    ],
)
def test_a_scorer_that_is_not_there_is_named(scorer: dict[str, Any], words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        resolve(ClipScorer(name="x", **scorer))


def test_the_auc_counts_ties_half() -> None:
    assert rank_auc(np.array([1.0, 2.0]), np.array([0.0, 0.5])) == 1.0
    assert rank_auc(np.array([1.0]), np.array([1.0])) == 0.5

"""An untrained nano model on a small vocabulary, made once."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightloom.model.chat import Document, Encoder
from sightloom.model.load import VLM, load
from sightloom.model.scratch import build_folder
from sightloom.records import Conversation, Message

WORDS = ["the", "a", "red", "blue", "circle", "square", "left", "right", "of", "bar", "12", "37", "$4.50", "€9", "how"]
SIZES = [(64, 64), (64, 32), (48, 48), (200, 90)]


def sentence(rng: random.Random, low: int = 3, high: int = 15) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def conversation(rng: random.Random, image: bool = True) -> Conversation:
    messages = (
        Message("user", sentence(rng), image),
        Message("assistant", sentence(rng), reasoning=sentence(rng)),
        Message("user", sentence(rng)),
        Message("assistant", sentence(rng), reasoning=" 12 + 37\nis  49. "),
    )
    return Conversation(f"c{rng.random()}", "conversation", "qa", "natural", messages)


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    texts = [sentence(rng) for _ in range(500)]
    return build_folder("nano", texts, tmp_path_factory.mktemp("nano") / "model", seed=3)


@pytest.fixture(scope="session")
def nano(nano_folder: Path) -> VLM:
    vlm = load(str(nano_folder))
    # Zero-initialised fusion would hide errors of its wiring.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for merger in vlm.model.model.visual.deepstack_merger_list:
            torch.nn.init.normal_(merger.linear_fc2.weight, std=0.05)
    return vlm


@pytest.fixture(scope="session")
def encoder(nano: VLM) -> Encoder:
    return Encoder(nano.processor)


@pytest.fixture(scope="session")
def documents(encoder: Encoder) -> list[Document]:
    """Eight training documents of different lengths and picture sizes, two of them without a picture."""
    rng = random.Random(1)
    return [
        encoder.encode(conversation(rng, image=index % 4 != 3), picture(index, SIZES[index % len(SIZES)]))
        for index in range(8)
    ]

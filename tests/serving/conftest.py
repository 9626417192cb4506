"""A nano model with random weights, its engine, and the app around it: the real parts, small."""

import asyncio
import base64
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sightloom.model.scratch import build_folder
from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.settings import TransformersSettings
from sightloom.serving.engines.transformers import TransformersEngine

TEXTS = [
    "Describe the image.",
    "How many red circles are there? Three.",
    "The sum of 3 and 4 is 7, so the answer is 7.",
]


def picture(width: int = 64, height: int = 64, seed: int = 0, format: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded picture of noise."""
    pixels = random.Random(seed).randbytes(width * height * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    """A data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A from-scratch nano export."""
    return build_folder("nano", TEXTS * 8, tmp_path_factory.mktemp("serving") / "nano", seed=7)


@pytest.fixture(scope="session")
def engine(nano_folder: Path) -> Iterator[TransformersEngine]:
    """The started transformers engine."""
    engine = TransformersEngine(nano_folder, "3", TransformersSettings(max_batch=8))
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.stop(5.0))


@pytest.fixture(scope="session")
def client(engine: TransformersEngine) -> Iterator[TestClient]:
    """The app in this process."""
    app = build_app(EndpointConfig(), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..raw_pairs import TINY_CLIP, Samples, scene_bytes, tar_bytes


@pytest.fixture
def scene() -> Callable[..., bytes]:
    return scene_bytes


@pytest.fixture
def make_tar() -> Callable[[Path, Samples], Path]:
    def write(path: Path, samples: Samples) -> Path:
        path.write_bytes(tar_bytes(samples))
        return path

    return write


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    return TINY_CLIP

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def scene_bytes(number: int, size: tuple[int, int] = (48, 48), form: str = "PNG") -> bytes:
    """A picture of blocks, different for each number."""
    draw = np.random.default_rng(number)
    blocks = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
    sink = io.BytesIO()
    image.save(sink, form)
    return sink.getvalue()


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """A tar as others write it: GNU format, any names."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def scene() -> Callable[..., bytes]:
    return scene_bytes


@pytest.fixture
def make_tar() -> Callable[[Path, list[tuple[str, dict[str, bytes]]]], Path]:
    return write_tar


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised open_clip model as a local-dir folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    return TINY_CLIP

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from sightloom.data.fit import fit_scorer
from sightloom.data.recipe import FitConfig
from sightloom.data.signals.config import ClipScorer
from sightloom.data.signals.scorers import resolve
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

COLOURS = ["red", "green", "blue", "yellow", "white", "black", "orange", "purple"]
VALUES = [(220, 20, 20), (20, 180, 20), (20, 20, 220), (230, 230, 20), (250, 250, 250), (5, 5, 5), (250, 150, 0),
          (140, 0, 160)]  # fmt: skip


def colour_tar(path: Path, make_tar: Any, rows: int) -> None:
    """Two halves of a picture, each of one colour, named by the caption."""
    import io

    from PIL import Image

    draw = np.random.default_rng(0)
    samples = []
    for number in range(rows):
        left, right = draw.integers(0, len(COLOURS), 2)
        image = Image.new("RGB", (32, 32), VALUES[left])
        image.paste(VALUES[right], (16, 0, 32, 32))
        sink = io.BytesIO()
        image.save(sink, "PNG")
        text = f"{COLOURS[left]} beside {COLOURS[right]}"
        samples.append((f"{number:04d}", {"png": sink.getvalue(), "txt": text.encode()}))
    make_tar(path, samples)


def test_a_fitted_network_ranks_pairs_above_shuffled_ones(tmp_path: Path, make_tar: Any, tiny_config: Any) -> None:
    colour_tar(tmp_path / "a.tar", make_tar, 400)
    config = FitConfig.model_validate(
        {"trusted": [{"kind": "webdataset", "uri": str(tmp_path / "a.tar")}], "model": tiny_config, "steps": 60,
         "batch": 64, "lr": 0.003, "warmup": 5, "threads": 1, "out": str(tmp_path / "filter")}
    )  # fmt: skip
    card = fit_scorer(config, 0, NullProgress())
    assert card.auc_shuffled >= 0.9 and not card.warning
    assert json.loads((tmp_path / "filter" / "card.json").read_text())["pairs"] == 400
    assert open_clip.create_model(f"local-dir:{tmp_path}/filter") is not None
    assert resolve(ClipScorer(name="f", model=f"local-dir:{tmp_path}/filter")).crop.side == 32


def test_too_few_pairs_and_a_model_that_is_none_are_mistakes(tmp_path: Path, make_tar: Any, tiny_config: Any) -> None:
    colour_tar(tmp_path / "a.tar", make_tar, 10)
    sources = [{"kind": "webdataset", "uri": str(tmp_path / "a.tar")}]
    base = {"trusted": sources, "out": str(tmp_path / "f"), "batch": 64, "threads": 1}
    with pytest.raises(UserMistake, match="too few for a batch"):
        fit_scorer(FitConfig.model_validate({**base, "model": tiny_config}), 0, NullProgress())
    for model in ("ViT-Z-99", {"embed_dim": 3}):
        with pytest.raises(UserMistake, match="is no open_clip"):
            fit_scorer(FitConfig.model_validate({**base, "model": model}), 0, NullProgress())
    assert not (tmp_path / "f" / "card.json").exists()

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sightloom.config import validate
from sightloom.data.signals.config import Head
from sightloom.data.signals.heads import HeadSpec, resolve_head
from sightloom.errors import UserMistake

DIM = 16
ATOL = 1e-5  # fp32, five small layers: only the order of additions differs; worst measured 2e-7


def resolved(path: Path, tensors: dict[str, torch.Tensor], **more: Any) -> HeadSpec:
    save_file(tensors, path / "head.safetensors")
    head = validate(Head, {"name": "h", "scorer": "b32", "weights": str(path / "head.safetensors"), **more}, "test")
    return resolve_head(head, DIM, {"model": "m"})


def images() -> np.ndarray[Any, Any]:
    found = np.random.default_rng(0).normal(size=(7, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def laion(width: int = DIM) -> torch.nn.Module:
    """The layout of LAION's improved aesthetic predictor: no activation, dropout between; here its widths are small."""
    torch.manual_seed(0)
    sizes = [(0, width, 12), (2, 12, 8), (4, 8, 6), (6, 6, 4), (7, 4, 1)]
    at = {number: torch.nn.Linear(given, wanted) for number, given, wanted in sizes}
    module = torch.nn.Module()
    module.layers = torch.nn.Sequential(*(at.get(number, torch.nn.Dropout(0.2)) for number in range(8)))
    return module.eval()


def test_a_head_in_laions_layout_equals_the_module_it_was_saved_from(tmp_path: Path) -> None:
    module = laion()
    spec = resolved(tmp_path, module.state_dict())
    with torch.no_grad():
        expected = module.layers(torch.from_numpy(images()))[:, 0].numpy()
    assert np.abs(spec.open("")(images())["head_h"] - expected).max() <= ATOL
    assert spec.columns == {"head_h": "float"} and spec.activation == "none"


def test_a_perceptron_runs_in_the_order_of_its_numbers_with_the_activation_that_is_said(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(10)), torch.nn.Linear(8, 1, bias=False))
    module[2] = torch.nn.Linear(DIM, 8)
    module[3] = torch.nn.ReLU()
    with pytest.raises(UserMistake, match=r"2 layers \(2, 10\)"):
        resolved(tmp_path, module.state_dict())
    spec = resolved(tmp_path, module.state_dict(), activation="relu")
    with torch.no_grad():
        expected = module(torch.from_numpy(images()))[:, 0].numpy()
    assert np.abs(spec.outputs(images()) - expected).max() <= ATOL
    plain = resolved(tmp_path, module.state_dict(), activation="none")
    assert plain.identity() != spec.identity() and np.abs(plain.outputs(images()) - expected).max() > 1e-3


def test_a_single_layer_may_have_half_precision_and_no_bias(tmp_path: Path) -> None:
    weight = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0)).half()
    spec = resolved(tmp_path, {"weight": weight})
    assert np.abs(spec.outputs(images()) - images() @ weight.float().numpy()[0]).max() <= ATOL


def test_other_weights_are_another_group(tmp_path: Path) -> None:
    first, second = (resolved(tmp_path, {"weight": torch.full((1, DIM), value)}) for value in (0.5, 0.25))
    assert first.identity()["weights_sha256"] != second.identity()["weights_sha256"]
    assert first.identity() == resolved(tmp_path, {"weight": torch.full((1, DIM), 0.5)}).identity()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.zeros(1, 768)}, "'weight' takes 768 features, 'b32' gives 16"),
        (
            {"a.weight": torch.zeros(8, DIM), "b.weight": torch.zeros(1, 4)},
            "takes 4 features, the layer before gives 8",
        ),
        ({"weight": torch.zeros(3, DIM)}, "ends in 3 outputs, a column needs 1"),
        ({"weight": torch.zeros(1, DIM), "bias": torch.zeros(2)}, r"'bias' has shape \[2\], its weight 1 outputs"),
        ({"weight": torch.zeros(DIM)}, r"'weight' has shape \[16\], not \[out, in\]"),
        ({"weight": torch.zeros(1, DIM), "running_mean": torch.zeros(1)}, "'running_mean' that belongs to no layer"),
    ],
)
def test_a_head_that_does_not_fit_is_named_with_both_numbers(tmp_path: Path, tensors: Any, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        resolved(tmp_path, tensors)


def test_a_pickle_is_never_opened_as_a_head(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1, DIM)}, tmp_path / "head.safetensors")
    with pytest.raises(UserMistake, match="no safetensors file"):
        resolve_head(Head(name="h", scorer="b32", weights=str(tmp_path / "head.safetensors")), DIM, {})

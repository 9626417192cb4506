import json
from pathlib import Path

import pytest
import torch

from sightloom.errors import UserMistake
from sightloom.model.load import load
from sightloom.model.scratch import build_folder
from sightloom.records import Conversation, Message
from sightloom.training.export import Probe, export, model_digest, seal, verify
from sightloom.training.merging import combine, merge

NAME = "model.language_model.layers.0.mlp.up_proj.weight"


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_linear_is_the_weighted_sum() -> None:
    assert torch.equal(combine([vector(1, 2), vector(4, -2)], [0.5, 0.25], "linear", None), vector(1.5, 0.5))


def test_ties_trims_elects_signs_and_takes_the_mean_of_those_that_agree() -> None:
    # Worked by hand after Yadav et al. 2023: each keeps its half of largest entries; signs of the sums are +, -, -, +
    changes = [vector(4, -3, 0.1, 0.2), vector(2, 0.1, -5, 0.2)]
    assert torch.equal(combine(changes, [1, 1], "ties", 0.5), vector(3, -3, -5, 0))
    opposed = [vector(4, 1), vector(-1, 3)]
    assert torch.equal(combine(opposed, [1, 1], "ties", 0.5), vector(4, 3))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A start and two exports that changed one matrix of it, by +1 and by -0.5; and a stranger."""
    root = tmp_path_factory.mktemp("family")
    start = build_folder("nano", ["the red circle"] * 20, root / "start", seed=1)
    parent = seal(start, {"preset": "nano", "thinking": {"default": None}})
    asked = Conversation("p", "conversation", "qa", "ui", (Message("user", "the circle"), Message("assistant", "red")))
    for name, change, origin in (("one", 1.0, parent), ("two", -0.5, parent), ("stranger", 1.0, "0" * 64)):
        vlm = load(str(start))
        with torch.no_grad():
            dict(vlm.model.named_parameters())[NAME].add_(change)
        info = {"preset": "nano", "thinking": {"default": None}, "parents": [origin]}
        export(vlm, root / name, info, [Probe(asked, None)], None)
    return {name: str(root / name) for name in ("start", "one", "two", "stranger")}


def weight(folder: str | Path) -> torch.Tensor:
    return dict(load(str(folder)).model.named_parameters())[NAME].detach()


def test_a_merged_model_is_a_verified_export_with_its_parents(family: dict[str, str], tmp_path: Path) -> None:

    out = tmp_path / "merged"
    digest = merge(family["start"], [family["one"], family["two"]], [0.5, 0.5], "linear", None, out)
    verify(out)
    assert torch.allclose(weight(out), weight(family["start"]) + 0.25, atol=1e-6)  # fp32, weights below 1
    info = json.loads((out / "sightloom.json").read_bytes())
    assert info["parents"] == [model_digest(Path(family[name])) for name in ("start", "one", "two")]
    assert digest == model_digest(out) and info["merge"] == {"method": "linear", "weights": [0.5, 0.5]}


def test_a_single_model_of_weight_one_comes_out_as_it_was(family: dict[str, str], tmp_path: Path) -> None:
    merge(family["start"], [family["one"]], [1.0], "single", None, tmp_path / "copy")
    assert torch.equal(weight(tmp_path / "copy"), weight(family["one"]))


def test_what_makes_no_sense_is_refused_in_words(family: dict[str, str], tmp_path: Path) -> None:
    both, out = [family["one"], family["two"]], tmp_path / "no"
    for models, weights, method, density, words in (
        (both, [1.0], "linear", None, "2 models and 1 weights"),
        (both, [0.5, 0.5], "single", None, "single does not take 2 models"),
        (both, [0.5, 0.5], "ties", 1.5, "density 1.5"),
        (both, [0.5, 0.5], "ties", None, "density None is not between"),
        (both, [0.5, 0.5], "linear", 0.5, "takes no density"),
        ([family["one"], family["stranger"]], [0.5, 0.5], "linear", None, "stranger' was not trained from"),
        (both, [0.5, 0.5], "slerp", None, "known: single, linear, ties"),
    ):
        with pytest.raises(UserMistake, match=words):
            merge(family["start"], models, weights, method, density, out)  # type: ignore[arg-type]
    assert not out.exists()
    with pytest.raises(UserMistake, match="exists"):
        merge(family["start"], both, [0.5, 0.5], "linear", None, tmp_path)

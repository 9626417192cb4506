"""Weights read unit by unit are those of a model that was loaded whole."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tests.model.conftest import conversation, picture

from sightloom.errors import SightloomError
from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load
from sightloom.model.packs import pack_documents
from sightloom.model.stream import Filler, skeleton
from sightloom.training.parallel import ensure_group
from sightloom.training.sharding import blocks, gathered, shard_model


@pytest.fixture
def group() -> Any:
    ensure_group()
    yield
    dist.destroy_process_group()


def test_a_skeleton_that_is_filled_unit_by_unit_and_shared_out_is_the_model_of_the_folder(
    nano_folder: Path, group: None
) -> None:
    whole, empty = load(str(nano_folder)), skeleton(nano_folder)
    assert all(parameter.is_meta for parameter in empty.model.parameters())
    model = TrainableVLM(empty.model)
    held: list[int] = []
    fill = Filler(empty.model, nano_folder)

    def filled(part: torch.nn.Module) -> None:
        fill(part)
        held.append(sum(not parameter.is_meta for parameter in empty.model.parameters()))

    shard_model(model, 1, 1, fill=filled)
    assert len(held) == len(blocks(model)) + 1 and held == sorted(held) and held[0] < held[-1]
    found = gathered(dict(empty.model.state_dict()))
    expected = whole.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    embedding = empty.model.get_input_embeddings().weight
    assert empty.model.lm_head.weight is embedding  # tied, and trained as one
    encoder, rng = Encoder(empty.processor), random.Random(1)
    pack = pack_documents([encoder.encode(conversation(rng), picture(1))], whole.model.config.image_token_id, 2)
    assert torch.equal(model(pack).logprobs, TrainableVLM(whole.model)(pack).logprobs)


def test_weights_that_lack_a_parameter_are_refused_by_name(nano_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(nano_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.visual.blocks.0.norm1.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SightloomError, match=r"do not name 1 parameters, e\.g\. model\.visual\.blocks\.0\.norm1\.weight"
    ):
        Filler(skeleton(folder).model, folder)

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from sightloom.errors import SightloomError
from sightloom.model.heads import ContrastiveHeads, TrainableVLM
from sightloom.model.load import VLM
from sightloom.model.modules import GROUPS, describe, module_groups, parameters_of

FAMILIES = ["llava_onevision", "idefics3", "internvl", "gemma3", "qwen2_5_vl", "smolvlm"]


def test_every_parameter_of_nano_is_in_one_group(nano: VLM) -> None:
    groups = module_groups(nano.model)
    names = [name for group in GROUPS for name in groups[group]]
    assert sorted(names) == sorted(name for name, _ in nano.model.named_parameters())
    assert all("merger" in name for name in groups["fusion"]) and groups["head"] == []
    assert sum(describe(nano.model).values()) == sum(p.numel() for p in nano.model.parameters())


def test_our_heads_are_the_head_of_the_training_module(nano: VLM) -> None:
    head = parameters_of(TrainableVLM(nano.model, ContrastiveHeads(128, "clip")), "head")
    assert set(head) == {"heads.image.weight", "heads.text.weight", "heads.log_scale"}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_mapped(family: str) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(family)
        config.text_config.pad_token_id = 0  # some families' default lies outside of their default vocabulary
        model = AutoModelForImageTextToText.from_config(config)
    groups = module_groups(model)
    assert all(groups[group] for group in ("vision", "fusion", "decoder"))


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(SightloomError, match=r"no group for 2 parameters, e.g. mystery.weight"):
        module_groups(nn.ModuleDict({"mystery": nn.Linear(2, 2)}))

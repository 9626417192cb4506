import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from sightloom.errors import SightloomError
from sightloom.model.heads import ContrastiveHeads, TrainableVLM
from sightloom.model.load import VLM
from sightloom.model.modules import GROUPS, describe, module_groups, parameters_of

# What lies beside the vision tower and the decoder, and whether the language head is a matrix of its own.
FAMILIES = {
    "llava": ({"multi_modal_projector"}, True),
    "llava_onevision": ({"multi_modal_projector", "image_newline"}, True),
    "idefics3": ({"connector"}, True),
    "smolvlm": ({"connector"}, True),
    "internvl": ({"multi_modal_projector"}, False),
    "gemma3": ({"multi_modal_projector"}, False),
    "paligemma": ({"multi_modal_projector"}, False),
    "mistral3": ({"multi_modal_projector"}, False),
    "lfm2_vl": ({"multi_modal_projector"}, False),
    "deepseek_vl": ({"aligner"}, False),
    "qwen2_5_vl": ({"visual"}, True),
    "qwen3_5": ({"visual"}, True),
}


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
        config.get_text_config().pad_token_id = 0  # some families' default lies outside of their default vocabulary
        model = AutoModelForImageTextToText.from_config(config)
    groups = module_groups(model)
    names = [name for group in GROUPS for name in groups[group]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    beside, own_head = FAMILIES[family]
    assert {name.split(".")[1] for name in groups["fusion"]} == beside
    assert groups["head"] == (["lm_head.weight"] if own_head else [])
    assert any(name.endswith("embed_tokens.weight") for name in groups["decoder"])
    text = config.get_text_config()
    assert sum(f".layers.{text.num_hidden_layers - 1}." in name for name in groups["decoder"]) > 3
    assert groups["vision"] and not any("language_model" in name or "text_model" in name for name in groups["vision"])


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(SightloomError, match=r"no group for 2 parameters, e.g. mystery.weight"):
        module_groups(nn.ModuleDict({"mystery": nn.Linear(2, 2)}))

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from sightloom.errors import SightloomError
from sightloom.model import lora
from sightloom.model.chat import Document
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM
from sightloom.model.modules import module_groups
from sightloom.model.packs import pack_documents

ATOL = 3e-6  # fp32 log-probabilities, 4 layers: W + BA in one product against two; worst measured 1.4e-6


@pytest.fixture
def adapted(nano: VLM) -> nn.Module:
    model = copy.deepcopy(nano.model)
    lora.attach(model, rank=4, alpha=8, seed=5)
    return model


def logprobs(model: nn.Module, documents: list[Document]) -> torch.Tensor:
    wrapped = TrainableVLM(model)
    with torch.no_grad():
        return wrapped(pack_documents(documents, wrapped.image_token_id, wrapped.merge_size)).logprobs


def moved(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    return model


def test_fresh_adapters_and_switched_off_ones_leave_the_base_exactly(
    nano: VLM, adapted: nn.Module, documents: list[Document]
) -> None:
    base = logprobs(nano.model, documents)
    assert torch.equal(logprobs(adapted, documents), base)
    moved(adapted)
    assert float((logprobs(adapted, documents) - base).abs().max()) > 1e-3
    lora.switch(adapted, on=False)
    assert torch.equal(logprobs(adapted, documents), base)


def test_a_merged_model_is_plain_and_answers_as_its_adapters_did(
    nano: VLM, adapted: nn.Module, documents: list[Document]
) -> None:
    with_adapters = logprobs(moved(adapted), documents)
    lora.merge(adapted)
    names = [name for name, _ in nano.model.named_parameters()]
    assert [name for name, _ in adapted.named_parameters()] == names
    assert torch.allclose(logprobs(adapted, documents), with_adapters, atol=ATOL, rtol=0)


def test_adapters_are_the_decoders_seven_projections_and_the_same_for_the_same_seed(
    nano: VLM, adapted: nn.Module
) -> None:
    adapters = {name: parameter for name, parameter in adapted.named_parameters() if lora.is_adapter(name)}
    assert len(adapters) == 4 * 7 * 2  # layers · projections · (A, B)
    assert set(adapters) <= set(module_groups(adapted)["decoder"])
    again, other = copy.deepcopy(nano.model), copy.deepcopy(nano.model)
    state = torch.random.get_rng_state()
    lora.attach(again, rank=4, alpha=8, seed=5)
    lora.attach(other, rank=4, alpha=8, seed=6)
    assert torch.equal(state, torch.random.get_rng_state())
    same, different = dict(again.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(parameter, same[name]) for name, parameter in adapters.items())
    assert not any(torch.equal(parameter, different[name]) for name, parameter in adapters.items() if "lora_A" in name)


@pytest.mark.parametrize("family", ["idefics3", "gemma3", "llava_onevision"])
def test_a_vision_tower_with_projections_of_the_same_names_takes_no_adapter(family: str) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(family)
        config.get_text_config().pad_token_id = 0
        model = AutoModelForImageTextToText.from_config(config)
    assert any(name.endswith("q_proj.weight") for name in module_groups(model)["vision"])
    assert len(lora.projections(model)) == 7 * config.get_text_config().num_hidden_layers


def test_a_decoder_without_such_projections_is_an_error() -> None:
    with pytest.raises(SightloomError, match="no decoder projection for LoRA"):
        lora.projections(nn.ModuleDict({"language_model": nn.ModuleDict({"fc": nn.Linear(2, 2)})}))

"""Freezing, rates and adapters by the module map alone, on small random models of other families, one step each."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from sightloom.model import lora
from sightloom.model.modules import GROUPS, module_groups
from sightloom.training.curriculum import Optim
from sightloom.training.optim import build_optimizer
from sightloom.training.parallel import Workers

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
FAMILIES = ["llava_onevision", "idefics3", "smolvlm", "gemma3", "internvl"]
ATOL = 1e-6  # fp32 logits, two layers: W + BA in one product against two; worst measured 2.4e-7


def small(family: str) -> Any:
    config = AutoConfig.for_model(family)
    for part, sizes in ((config.get_text_config(), TEXT), (config.vision_config, VISION)):
        for name, value in sizes.items():
            if hasattr(part, name):
                setattr(part, name, (value, value) if isinstance(getattr(part, name), list | tuple) else value)
    if getattr(config.get_text_config(), "layer_types", None):
        config.get_text_config().layer_types = config.get_text_config().layer_types[:2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config)


def changed_by_a_step(model: Any, groups: dict[Any, list[str]], rates: dict[str, float | None]) -> set[str]:
    """The names of the parameters that one step on a text changes."""
    optimizer = build_optimizer(dict(model.named_parameters()), groups, rates, Optim(), Workers(0, 1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.arange(1, 41).view(2, 20)
    extra = {"token_type_ids": torch.zeros_like(ids)} if model.config.model_type == "gemma3" else {}
    model.train()(input_ids=ids, labels=ids, **extra).loss.backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_rate_stays_as_it_is(family: str) -> None:
    model = small(family)
    groups = module_groups(model)
    rates = {group: 0.01 if group == "decoder" else None for group in GROUPS}
    changed = changed_by_a_step(model, groups, rates)
    assert changed == set(groups["decoder"])


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_alone_and_merge_into_the_decoder(family: str) -> None:
    model = small(family)
    plain = [name for name, _ in model.named_parameters()]
    lora.attach(model, rank=2, alpha=4, seed=1)
    adapters = [name for name in module_groups(model)["decoder"] if lora.is_adapter(name)]
    rates = {group: 0.1 if group == "decoder" else None for group in GROUPS}
    changed = changed_by_a_step(model, {"decoder": adapters}, rates)
    assert changed and changed <= set(adapters)
    ids = torch.arange(1, 41).view(2, 20)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        lora.merge(model)
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=ATOL, rtol=0)
    assert [name for name, _ in model.named_parameters()] == plain

"""bfloat16 compute over float32 weights, and compiled layers: what stays, and how near the float32 step is."""

import copy
import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.model.conftest import SIZES, conversation, picture, sentence

from sightloom.errors import UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.model.packs import Pack, pack_documents
from sightloom.model.scratch import build_folder
from sightloom.objectives.language import lm_loss
from sightloom.training.parallel import ensure_group
from sightloom.training.sharding import compile_blocks, gathered, shard_model


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("nano") / "model"
    return load(str(build_folder("nano", [sentence(rng) for _ in range(300)], folder, seed=3)))


@pytest.fixture
def group() -> Any:
    ensure_group()
    yield
    dist.destroy_process_group()


def packs(vlm: VLM, *sizes: int) -> list[Pack]:
    encoder, rng = Encoder(vlm.processor), random.Random(2)
    return [
        pack_documents(
            [encoder.encode(conversation(rng, True), picture(n, SIZES[n % len(SIZES)])) for n in range(size)],
            vlm.model.config.image_token_id,
            2,
        )
        for size in sizes
    ]


def gradients(model: Any, pack: Pack) -> dict[str, torch.Tensor]:
    model.zero_grad()
    lm_loss(model(pack).logprobs).div(pack.num_labels).backward()
    return gathered({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def test_bfloat16_computes_near_float32_and_keeps_float32_weights_and_gradients(vlm: VLM, group: None) -> None:
    (pack,) = packs(vlm, 4)
    exact = gradients(TrainableVLM(copy.deepcopy(vlm.model)).train(), pack)
    model = TrainableVLM(copy.deepcopy(vlm.model)).train()
    shard_model(model, 1, 1, bfloat16=True)
    computed: set[torch.dtype] = set()
    layer = model.vlm.model.language_model.layers[0].self_attn.o_proj
    layer.register_forward_hook(lambda module, args, output: computed.add(output.dtype))
    rough = gradients(model, pack)
    assert computed == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {value.dtype for value in rough.values()} == {torch.float32}
    whole = [torch.cat([value.flatten() for value in side.values()]) for side in (exact, rough)]
    assert float(torch.nn.functional.cosine_similarity(*whole, dim=0)) > 0.999  # bf16 keeps 8 bits of a number
    assert not torch.equal(*whole)


@pytest.mark.long
def test_compiled_layers_have_the_same_gradient_for_packs_of_any_length(vlm: VLM) -> None:
    plain = TrainableVLM(copy.deepcopy(vlm.model)).train()
    compiled = TrainableVLM(copy.deepcopy(vlm.model)).train()
    compile_blocks(compiled)
    for pack in packs(vlm, 1, 3):
        expected, found = gradients(plain, pack), gradients(compiled, pack)
        assert set(expected) == set(found)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)  # fp32, fused; worst measured 6e-7


def test_compiling_without_a_compiler_is_a_mistake_in_words(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserMistake, match=r"parallel\.compile needs a C\+\+ compiler"):
        compile_blocks(vlm.model)

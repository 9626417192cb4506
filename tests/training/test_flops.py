"""Operations of a step against torch's own counter, for every way of freezing."""

import random
from pathlib import Path

import pytest
from tests.model.conftest import SIZES, conversation, picture, sentence
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sightloom.model import lora
from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load
from sightloom.model.modules import group_of
from sightloom.model.packs import Pack, pack_documents
from sightloom.model.scratch import build_folder
from sightloom.objectives.language import lm_loss
from sightloom.training.flops import FlopCounter, Meter, device_peak, peak_flops
from sightloom.training.tasks.batch import Packer

ALL = ("vision", "fusion", "decoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    return build_folder("nano", [sentence(rng) for _ in range(300)], tmp_path_factory.mktemp("nano") / "m", seed=3)


@pytest.fixture(scope="module")
def pack(folder: Path) -> Pack:
    vlm, rng = load(str(folder)), random.Random(2)
    encoder = Encoder(vlm.processor)
    # equal documents: with unequal ones the CPU's attention pads, which a count of what is needed leaves out
    document = encoder.encode(conversation(rng, True), picture(0, SIZES[0]))
    return pack_documents([document] * 4, vlm.model.config.image_token_id, 2)


@pytest.mark.parametrize("trained", [ALL, ("fusion", "decoder"), ("decoder",), ("fusion",), ("vision",), ("lora",)])
def test_the_count_is_that_of_torch(folder: Path, pack: Pack, trained: tuple[str, ...]) -> None:
    vlm = load(str(folder))
    if trained == ("lora",):
        lora.attach(vlm.model, 8, 16, seed=1)
    model = TrainableVLM(vlm.model).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lora.is_adapter(name) if trained == ("lora",) else group_of(name) in trained)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        lm_loss(model(pack).logprobs).backward()
    assert FlopCounter(model).pack(pack, causal=False) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_a_frozen_model_counts_a_third_and_a_reference_another(folder: Path, pack: Pack) -> None:
    model = TrainableVLM(load(str(folder)).model)
    whole, with_reference = FlopCounter(model).pack(pack), FlopCounter(model, extra_forwards=1).pack(pack)
    frozen = FlopCounter(model.requires_grad_(False)).pack(pack)
    assert frozen == pytest.approx(whole / 3, rel=0.02)
    assert with_reference - whole == pytest.approx(frozen)


def test_a_blank_pack_adds_nothing_and_half_the_peak_is_half_the_utilization(folder: Path, pack: Pack) -> None:
    vlm = load(str(folder))
    counter = FlopCounter(TrainableVLM(vlm.model))
    assert counter.pack(Packer(Encoder(vlm.processor), vlm.model.config).pack([])) == 0.0
    flops = counter.pack(pack)
    found = Meter(counter, 2 * pack.num_tokens, peak=flops).metrics({"flops": flops, "tokens": pack.num_tokens}, 1, 2.0)
    assert found["speed/mfu"] == pytest.approx(0.5) and found["data/pack_fill"] == pytest.approx(0.5)


def test_a_peak_is_known_by_name_or_given() -> None:
    assert peak_flops("NVIDIA H200", bfloat16=True) == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3", bfloat16=False) == 67e12
    assert peak_flops("Some Accelerator", bfloat16=True) is None
    assert device_peak("cpu", False, None) is None and device_peak("cpu", False, 0.5) == 5e11

"""FSDP2 and HSDP on two processes over gloo: gradients are those of one process, bit for bit those of plain sums."""

import copy
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.model.conftest import SIZES, conversation, picture, sentence

from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.model.packs import Pack, pack_documents
from sightloom.model.scratch import build_folder
from sightloom.objectives.language import lm_loss
from sightloom.training.parallel import Workers
from sightloom.training.sharding import blocks, clip_gradients, gathered, reduce_at, shard_model

from .forked import run_ranks

ATOL = 1e-6  # fp32: the gradients were equal, FSDP's norm of 6 sums its squares in another order; worst measured 5e-7
Gradients = dict[str, torch.Tensor]
Meshes = dict[str, tuple[int, int] | None]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("nano") / "model"
    return load(str(build_folder("nano", [sentence(rng) for _ in range(300)], folder, seed=3)))


@pytest.fixture(scope="module")
def packs(vlm: VLM) -> list[list[Pack]]:
    """Two uneven micro-batches for each rank; the second rank has no picture, and a pack without a label."""
    encoder, rng = Encoder(vlm.processor), random.Random(2)

    def documents(num: int, image: bool) -> list[Any]:
        return [
            encoder.encode(conversation(rng, image), picture(n, SIZES[n % len(SIZES)]) if image else None)
            for n in range(num)
        ]

    ranks = [[documents(3, True), documents(1, True)], [documents(2, False), [encoder.caption("a red circle")]]]
    image_token = vlm.model.config.image_token_id
    return [[pack_documents(part, image_token, 2) for part in parts] for parts in ranks]


def gradients(model: Any, packs: list[Pack], workers: Workers, labels: int) -> Gradients:
    for number, pack in enumerate(packs, 1):
        reduce_at(model, last=number == len(packs))
        (lm_loss(model(pack).logprobs) / labels).backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    workers.reduce_gradients(parameters)
    found = gathered({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    norm = clip_gradients(parameters, 1e9)
    return {name: value for name, value in found.items() if value is not None} | {"norm": torch.tensor(norm)}


def fresh(vlm: VLM, frozen: bool) -> TrainableVLM:
    model = TrainableVLM(copy.deepcopy(vlm.model)).train()
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("visual.blocks" not in name)
    return model


def _rank(rank: int, port: int, vlm: VLM, packs: list[list[Pack]], meshes: Meshes, out: Path, errors: Any) -> None:
    try:
        torch.set_num_threads(1)
        world = len(packs)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        labels = sum(pack.num_labels for parts in packs for pack in parts)
        found: dict[str, Gradients] = {}
        for frozen in (False, True):
            for name, mesh in meshes.items():
                model = fresh(vlm, frozen)
                if mesh is not None:
                    shard_model(model, *mesh)
                found[f"{name}/{frozen}"] = gradients(
                    model, packs[rank], Workers(rank, world, mesh is not None), labels
                )
        if rank == 0:
            torch.save(found, out / "gradients.pt")
        dist.destroy_process_group()
    except BaseException as error:
        errors.put(repr(error))
        raise


def on_ranks(vlm: VLM, packs: list[list[Pack]], meshes: Meshes, out: Path) -> dict[str, Gradients]:
    """The gradients that the first rank gathered, a rank for each list of packs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ranks, errors = run_ranks(_rank, len(packs), port, vlm, packs, meshes, out)
    assert [process.exitcode for process in ranks] == [0] * len(packs), None if errors.empty() else errors.get()
    return dict(torch.load(out / "gradients.pt"))


@pytest.fixture(scope="module")
def found(vlm: VLM, packs: list[list[Pack]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gradients]:
    meshes: Meshes = {"ddp": None, "fsdp": (1, 2), "hsdp": (2, 1)}
    return on_ranks(vlm, packs, meshes, tmp_path_factory.mktemp("gradients"))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_two_ranks_with_uneven_packs_have_the_gradient_of_one_process(
    found: dict[str, Gradients], vlm: VLM, packs: list[list[Pack]], way: str, frozen: bool
) -> None:
    every = [pack for parts in packs for pack in parts]
    alone = gradients(fresh(vlm, frozen), every, Workers(0, 1), sum(pack.num_labels for pack in every))
    theirs = found[f"{way}/{frozen}"]
    assert set(alone) == set(theirs) and float(alone["norm"]) > 0.1
    for name, gradient in alone.items():
        torch.testing.assert_close(theirs[name], gradient, atol=ATOL, rtol=1e-5)


def test_two_replicas_of_two_shards_have_the_gradient_of_one_process(
    vlm: VLM, packs: list[list[Pack]], tmp_path: Path
) -> None:
    every = [pack for parts in packs for pack in parts]
    alone = gradients(fresh(vlm, False), every, Workers(0, 1), sum(pack.num_labels for pack in every))
    theirs = on_ranks(vlm, [[pack] for pack in every], {"hsdp": (2, 2)}, tmp_path)["hsdp/False"]
    for name, gradient in alone.items():
        torch.testing.assert_close(theirs[name], gradient, atol=ATOL, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_sharing_the_model_out_changes_no_bit_of_a_gradient(found: dict[str, Gradients], frozen: bool) -> None:
    plain = found[f"ddp/{frozen}"]
    for way in ("fsdp", "hsdp"):
        shared = found[f"{way}/{frozen}"]
        assert [name for name in plain if name != "norm" and not torch.equal(plain[name], shared[name])] == []


def test_recomputed_layers_keep_fewer_activations_and_the_same_gradient(vlm: VLM, packs: list[list[Pack]]) -> None:
    def kept(recompute: bool) -> tuple[int, Gradients]:
        model, held = fresh(vlm, False), 0
        if recompute:
            model.vlm.gradient_checkpointing_enable({"use_reentrant": False})

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = lm_loss(model(packs[0][0]).logprobs)
        loss.backward()
        return held, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (plain, expected), (recomputed, gradient) = kept(False), kept(True)
    assert recomputed < 0.7 * plain
    assert set(expected) == set(gradient)
    assert all(torch.equal(expected[name], gradient[name]) for name in expected)


def test_the_units_are_the_blocks_of_the_tower_and_the_layers_of_the_decoder(vlm: VLM) -> None:
    assert len(blocks(TrainableVLM(copy.deepcopy(vlm.model)))) == 3 + 4


def test_looking_at_a_blank_picture_changes_no_output_and_gives_the_tower_gradients_of_zero(
    vlm: VLM, packs: list[list[Pack]]
) -> None:
    plain, looking = fresh(vlm, False), fresh(vlm, False)
    looking.always_look = True
    pack = packs[1][0]
    assert torch.equal(plain(pack).logprobs, looking(pack).logprobs)
    lm_loss(looking(pack).logprobs).backward()
    tower = {name: p.grad for name, p in looking.named_parameters() if "visual" in name}
    assert all(gradient is not None and not gradient.any() for gradient in tower.values())

"""GradCache: the contrastive batch spans micro-batches and workers, and its gradient is that of one forward."""

import copy
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.model.conftest import SIZES, conversation, picture, sentence
from tests.training.float64 import doubled

from sightloom.model.chat import Encoder
from sightloom.model.heads import ContrastiveHeads, TrainableVLM
from sightloom.model.load import load
from sightloom.model.packs import pack_documents
from sightloom.model.scratch import build_folder
from sightloom.training.objective_options import AlignObjective
from sightloom.training.parallel import Workers
from sightloom.training.tasks.align import Align, PairBatch

from .forked import run_ranks

Gradients = dict[str, torch.Tensor]
EXACT = {"rtol": 0, "atol": 1e-12}  # float64: other orders of summation


def aligning(kind: str, cached: bool, workers: Workers) -> Align:
    """The objective without its corpus: batches are given."""
    align = Align.__new__(Align)
    align._options = AlignObjective(kind="align", contrastive=kind, weight=0.7, grad_cache=cached)
    align._workers, align._cached = workers, {}
    return align


def gradients(align: Align, model: Any, batches: list[PairBatch], workers: Workers) -> Gradients:
    counts = workers.sum_all(align.counts(batches))
    align.prepare(model, batches, counts)
    for batch in batches:
        align.loss(model, batch, counts).total.backward()
    workers.reduce_gradients(list(model.parameters()))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    return build_folder("nano", [sentence(rng) for _ in range(300)], tmp_path_factory.mktemp("nano") / "m", seed=3)


def make(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """A float64 model and seven pairs: (picture with caption, caption alone)."""
    vlm, rng = load(str(folder)), random.Random(2)
    encoder = Encoder(vlm.processor)
    pairs = [
        (
            encoder.encode(conversation(rng, True), picture(n, SIZES[n % len(SIZES)])),
            encoder.caption(f"{sentence(rng)} {n}"),
        )
        for n in range(7)
    ]
    torch.manual_seed(1)
    model = TrainableVLM(vlm.model, ContrastiveHeads(vlm.model.config.text_config.hidden_size, kind))
    return doubled(model, monkeypatch).train(), pairs


def batch_of(model: Any, pairs: list[Any]) -> PairBatch:
    documents = [shown for shown, _ in pairs] + [alone for _, alone in pairs]
    pack = pack_documents(documents, model.image_token_id, model.merge_size)
    pack = type(pack)(**{n: getattr(pack, n) for n in pack.__slots__} | {"pixel_values": pack.pixel_values.double()})
    return PairBatch(pack, ("natural",) * len(pairs))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_micro_batches_have_the_gradient_of_one_forward(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = make(folder, kind, monkeypatch)
    alone = Workers(0, 1)
    direct = gradients(aligning(kind, False, alone), copy.deepcopy(model), [batch_of(model, pairs)], alone)
    parts = [batch_of(model, pairs[a:b]) for a, b in ((0, 3), (3, 4), (4, 7))]
    cached = gradients(aligning(kind, True, alone), copy.deepcopy(model), parts, alone)
    apart = gradients(aligning(kind, False, alone), copy.deepcopy(model), parts, alone)
    assert set(direct) == set(cached) and "heads.log_scale" in direct
    for name, gradient in direct.items():
        torch.testing.assert_close(cached[name], gradient, **EXACT)
    # without the cache each micro-batch would be a contrastive batch of its own: another loss
    assert float((apart["heads.text.weight"] - direct["heads.text.weight"]).abs().max()) > 1e-4


def _rank(rank: int, port: int, model: Any, parts: list[list[PairBatch]], kind: str, out: Path, errors: Any) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        workers = Workers(rank, 2)
        found = gradients(aligning(kind, True, workers), model, parts[rank], workers)
        if rank == 0:
            torch.save(found, out / "gradients.pt")
        dist.destroy_process_group()
    except BaseException as error:
        errors.put(repr(error))
        raise


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_workers_with_uneven_micro_batches_have_the_gradient_of_one_forward(
    folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = make(folder, kind, monkeypatch)
    alone = Workers(0, 1)
    direct = gradients(aligning(kind, False, alone), copy.deepcopy(model), [batch_of(model, pairs)], alone)
    parts = [[batch_of(model, pairs[0:3]), batch_of(model, pairs[3:4])], [batch_of(model, pairs[4:7])]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ranks, errors = run_ranks(_rank, 2, port, model, parts, kind, tmp_path)
    assert [process.exitcode for process in ranks] == [0, 0], None if errors.empty() else errors.get()
    together = torch.load(tmp_path / "gradients.pt")
    for name, gradient in direct.items():
        torch.testing.assert_close(together[name], gradient, **EXACT)

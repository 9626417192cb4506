"""float64: the gradient of two workers with uneven micro-batches is that of one process to the last digits."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.training.float64 import doubled
from tests.training.test_sharding import Meshes, fresh, gradients, on_ranks, packs, vlm  # noqa: F401  fixtures

from sightloom.model.load import VLM
from sightloom.model.packs import Pack
from sightloom.training.parallel import Workers

ATOL = 1e-12  # gradients of up to 1; other orders of summation


def test_two_workers_have_the_gradient_of_one_process_in_float64(
    vlm: VLM,  # noqa: F811
    packs: list[list[Pack]],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = dataclasses.replace(vlm, model=doubled(vlm.model, monkeypatch))
    parts = [
        [
            dataclasses.replace(pack, pixel_values=None if pack.pixel_values is None else pack.pixel_values.double())
            for pack in own
        ]
        for own in packs
    ]
    every = [pack for own in parts for pack in own]
    alone = gradients(fresh(exact, False), every, Workers(0, 1), sum(pack.num_labels for pack in every))
    meshes: Meshes = {"ddp": None, "fsdp": (1, 2)}
    found = on_ranks(exact, parts, meshes, tmp_path)
    assert float(alone["norm"]) > 0.1
    for way in meshes:
        theirs = found[f"{way}/False"]
        assert set(theirs) == set(alone)
        for name, gradient in alone.items():
            if name != "norm":
                assert gradient.dtype == torch.float64
                torch.testing.assert_close(theirs[name], gradient, atol=ATOL, rtol=0, msg=f"{way} {name}")

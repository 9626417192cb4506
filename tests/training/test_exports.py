"""What a stage exports: a plain model that transformers alone loads, and that is proved to be the same one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightloom.errors import SightloomError
from sightloom.model.lora import PROJECTIONS
from sightloom.training import outsider
from sightloom.training.export import verify
from sightloom.training.proof import the_outsider
from sightloom.training.worker import StageOrder

from .stage_runs import (
    INSTRUCT,
    REASON,
    assert_equal_weights,
    kill_at_its_checkpoint,
    run,
    weights,
)


def test_an_export_loads_with_transformers_alone_and_a_damaged_one_is_refused(order: Callable[..., StageOrder]) -> None:
    done = order(REASON, "reason")
    outcome = run(done)
    folder = Path(done.folder) / "model"
    assert outcome["steps"] == 3 and outcome["samples"] > 0 and outcome["seconds"] > 0
    AutoProcessor.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_vl"
    verify(folder)
    assert 0 <= the_outsider().prove(folder) < 1e-4
    weights_file = folder / "model.safetensors"
    whole = weights_file.read_bytes()
    data = bytearray(whole)
    data[-3] ^= 1
    weights_file.write_bytes(data)
    with pytest.raises(SightloomError, match=r"model\.safetensors differs"):
        verify(folder)

    # what the checksums do not know of, the answers do: other weights, another template, a file that is not there
    tensors = load_file(weights_file)
    tensors["model.language_model.norm.weight"] *= 1.01
    save_file(tensors, weights_file, {"format": "pt"})
    with pytest.raises(SightloomError, match=r"its logits differ by"):
        the_outsider().prove(folder)
    weights_file.write_bytes(whole)
    template = folder / "chat_template.jinja"
    words = template.read_text()
    template.write_text(words.replace("<|im_start|>assistant", "<|im_start|>user"))
    with pytest.raises(SightloomError, match=r"give other tokens"):
        the_outsider().prove(folder)
    template.write_text(words)
    the_outsider().prove(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SightloomError, match=r"is not the same one for transformers alone"):
        the_outsider().prove(folder)


def test_the_one_who_proves_an_export_cannot_import_sightloom() -> None:
    finder = outsider.Refused()
    assert finder.find_spec("transformers") is None and finder.find_spec("sightloomlike") is None
    for name in ("sightloom", "sightloom.model.attention"):
        with pytest.raises(ImportError, match="without sightloom"):
            finder.find_spec(name)


def test_adapters_train_the_decoder_alone_and_the_export_is_a_plain_model(
    order: Callable[..., StageOrder],
) -> None:
    train = "train={decoder: {lora: {rank: 4, alpha: 8}, lr: 0.01}}"
    whole, broken = (
        order(INSTRUCT, "whole", train, "optim.kind=adamw"),
        order(INSTRUCT, "broken", train, "optim.kind=adamw"),
    )
    run(whole)
    before = dict(AutoModelForImageTextToText.from_pretrained(whole.start).named_parameters())
    after = weights(whole)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 4 * 7 and all(name.split(".")[-2] in PROJECTIONS for name in changed)
    verify(Path(whole.folder) / "model")

    kill_at_its_checkpoint(broken)
    run(broken)
    assert_equal_weights(whole, broken, 0.0)

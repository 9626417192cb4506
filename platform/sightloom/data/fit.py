"""Fitting a filter network: a small open_clip model trained on pairs that are trusted to match.

A filter is judged by ranking pairs, not by zero-shot accuracy (Data Filtering Networks, arXiv 2309.17425):
`auc_shuffled` is the chance that a held-out picture's own caption outranks another's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from safetensors.torch import save_file

from sightloom import storage
from sightloom.data.decode import Undecodable, decode
from sightloom.data.recipe import FitConfig
from sightloom.data.signals.clip import ClipModel, encode_text, rank_auc
from sightloom.data.signals.config import ClipScorer, DecodeLimits
from sightloom.data.signals.crops import CropSpec, crop
from sightloom.data.signals.scorers import LOCAL, ClipSpec, resolve, write_config
from sightloom.data.sources.chunks import list_files, read_chunks
from sightloom.data.sources.config import UrlSource
from sightloom.data.sources.records import OK
from sightloom.errors import UserMistake
from sightloom.progress import Progress

WEIGHTS = "open_clip_model.safetensors"
CARD = "card.json"
MAX_LOGIT_SCALE = math.log(100.0)  # as open_clip's own training clamps it
LOW_SEPARATION = 0.7
READ_ROWS = 1024


@dataclass(frozen=True)
class FittedScorer:
    """A filter network on disk, and how well it tells pairs from shuffled ones."""

    folder: str
    pairs: int
    steps: int
    auc_shuffled: float
    weights_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the card."""
        return {
            "model": LOCAL + self.folder,
            "pairs": self.pairs,
            "steps": self.steps,
            "auc_shuffled": self.auc_shuffled,
            "weights_sha256": self.weights_sha256,
        }

    @property
    def warning(self) -> str:
        """Say when the network is no use as a filter."""
        if self.auc_shuffled >= LOW_SEPARATION:
            return ""
        return f"auc_shuffled is {self.auc_shuffled:.2f}: it hardly knows pairs from shuffled ones; train longer"


@dataclass(frozen=True)
class _Pairs:
    """Pictures uint8 [N, side, side, 3] with their captions."""

    crops_NHWC: npt.NDArray[np.uint8]
    texts: list[str]


def fit_scorer(config: FitConfig, seed: int, progress: Progress) -> FittedScorer:
    """Train a filter network and write a folder that `local-dir:` loads, with its card.

    Args:
        config: trusted sources, model, steps, and `out`.
        seed: of the weights, the split and the order.
        progress: where to say how far it is.

    Raises:
        UserMistake: the model or the sources are wrong, or there are too few pairs for a batch.
    """
    storage.ensure_writable(config.out)
    with tempfile.TemporaryDirectory(prefix="sightloom-fit-") as scratch:
        scorer, model_config = _scorer(config, seed, Path(scratch))
        spec = resolve(scorer)
        torch.set_num_threads(os.cpu_count() or 1 if config.threads == "auto" else config.threads)
        model = ClipModel(spec, "cuda" if torch.cuda.is_available() else "cpu")
        pairs = _read_pairs(config, spec.crop, progress)
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(pairs.texts))
        held = max(2, round(config.held_out * len(order)))
        if len(order) - held < config.batch:
            raise UserMistake(
                f"{len(order)} trusted pairs are too few for a batch of {config.batch} beside {held} held out",
                "lower fit.batch, or name more trusted sources",
            )
        _train(model, pairs, order[held:], config, draw, progress)
        auc = _auc_shuffled(model, pairs, order[:held])
        return _write(config, model, model_config, spec, len(order), auc, Path(scratch))


def _scorer(config: FitConfig, seed: int, scratch: Path) -> tuple[ClipScorer, dict[str, Any]]:
    """Return the model to start from, and its configuration as it will be written."""
    given = config.model
    if isinstance(given, str) and given.endswith(".json"):
        given = storage.read_json(given)
    if isinstance(given, str) and not given.startswith(LOCAL):
        built_in = open_clip.get_model_config(given)
        if built_in is None:
            raise UserMistake(f"fit.model '{given}' is no open_clip model", "see open_clip.list_models()")
        return ClipScorer(name="fit", model=given, pretrained=config.pretrained, seed=seed), built_in
    if isinstance(given, str):
        scorer = ClipScorer(name="fit", model=given, seed=seed)
        folder = Path(given.removeprefix(LOCAL))
        model_config: dict[str, Any] = storage.read_json(str(folder / "open_clip_config.json"))["model_cfg"]
        return scorer, model_config
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= given.keys():
        raise UserMistake("fit.model is no open_clip configuration", "it needs embed_dim, vision_cfg and text_cfg")
    folder = scratch / "start"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": given, "preprocess_cfg": {}}))
    torch.manual_seed(seed)
    settings = {name: value for name, value in given.items() if name != "custom_text"}
    kind = open_clip.CustomTextCLIP if given.get("custom_text") else open_clip.CLIP
    save_file(kind(**settings).state_dict(), folder / WEIGHTS)
    return ClipScorer(name="fit", model=LOCAL + str(folder), seed=seed), given


def _read_pairs(config: FitConfig, spec: CropSpec, progress: Progress) -> _Pairs:
    crops: list[npt.NDArray[np.uint8]] = []
    texts: list[str] = []
    with progress.step("read trusted pairs", unit="pairs") as step:
        for image, text in _raw_pairs(config):
            try:
                crops.append(crop(decode(image, DecodeLimits()).image, spec))
            except Undecodable:
                continue  # a trusted source may still hold a broken file; it is no pair
            texts.append(text)
            step.advance()
    if len(texts) < 2:
        raise UserMistake("fit.trusted holds no usable pairs", "check its uri and fields")
    return _Pairs(np.stack(crops), texts)


def _raw_pairs(config: FitConfig) -> Iterator[tuple[bytes, str]]:
    for source in config.trusted:
        if isinstance(source, UrlSource):
            raise UserMistake("fit.trusted takes files, not lists of URLs", "curate them first, then name the shards")
        for file in list_files(source, READ_ROWS):
            for chunk in read_chunks(file, frozenset()):
                columns = (chunk.table.column(name).to_pylist() for name in ("status", "kind", "image", "text"))
                for status, kind, image, text in zip(*columns, strict=True):
                    if status == OK and kind == "pair":
                        yield image, text


def _train(
    model: ClipModel,
    pairs: _Pairs,
    rows_N: npt.NDArray[np.int64],
    config: FitConfig,
    draw: np.random.Generator,
    progress: Progress,
) -> None:
    """Train by open_clip's contrastive loss: AdamW, warm-up, cosine to zero."""
    network = model.model.train()
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    loss_of = open_clip.ClipLoss()
    tokens_NT = model.tokenizer(pairs.texts)
    queue = np.zeros(0, np.int64)
    with progress.step("fit", total=config.steps, unit="steps") as step:
        for number in range(config.steps):
            if len(queue) < config.batch:
                queue = np.concatenate([queue, draw.permutation(rows_N)])
            batch, queue = queue[: config.batch], queue[config.batch :]
            warm = min(1.0, (number + 1) / max(1, config.warmup))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * number / config.steps))
            pixels = model.pixels(pairs.crops_NHWC[batch])
            images = torch.nn.functional.normalize(network.encode_image(pixels), dim=-1)
            words = encode_text(network, tokens_NT[torch.from_numpy(batch)].to(model.device))
            words = torch.nn.functional.normalize(words, dim=-1)
            loss = loss_of(images, words, network.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                network.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            step.advance()
            step.note(f"loss {loss.item():.3f}")
    network.eval()


def _auc_shuffled(model: ClipModel, pairs: _Pairs, rows: npt.NDArray[np.int64]) -> float:
    """Return the chance that a held-out picture's caption outranks the next picture's, equal captions left out."""
    texts = [pairs.texts[row] for row in rows]
    shuffled = texts[1:] + texts[:1]
    apart = [number for number, text in enumerate(texts) if text != shuffled[number]]
    own = model.score(pairs.crops_NHWC[rows], texts).cosine_N
    other = model.score(pairs.crops_NHWC[rows], shuffled).cosine_N
    return rank_auc(own[apart], other[apart]) if apart else 0.5


def _write(
    config: FitConfig,
    model: ClipModel,
    model_config: dict[str, Any],
    spec: ClipSpec,
    pairs: int,
    auc: float,
    scratch: Path,
) -> FittedScorer:
    """Write the folder, the card last."""
    done = scratch / "done"
    done.mkdir()
    write_config(done, model_config, spec)
    save_file({name: value.contiguous() for name, value in model.model.state_dict().items()}, done / WEIGHTS)
    weights = storage.sha256_file(done / WEIGHTS)
    fitted = FittedScorer(config.out, pairs, config.steps, round(auc, 4), weights)
    (done / CARD).write_text(json.dumps(fitted.to_json(), indent=2))
    storage.delete(storage.join(config.out, CARD))
    for name in ("open_clip_config.json", WEIGHTS, CARD):
        storage.put_file(done / name, storage.join(config.out, name))
    shutil.rmtree(done)
    return fitted

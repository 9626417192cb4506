"""Scorers as the driver resolves them: what decides their scores and how they want pictures. No torch is loaded here,
but for weights that open_clip knows by a tag.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom import storage
from sightloom.config import digest
from sightloom.data.signals.config import ClipScorer
from sightloom.data.signals.crops import RESAMPLING, CropSpec
from sightloom.data.signals.overlap import TextMask
from sightloom.errors import UserMistake

LOCAL = "local-dir:"
CONFIG_FILE = "open_clip_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
VERSION = 1
MASKED = "_masked"  # ends the name of a scorer's second column, of pictures with their text covered
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's where none is given


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """A scorer as resolved once by the driver: everything that decides its scores, and how it wants pictures."""

    scorer: ClipScorer
    weights_sha256: str
    crop: CropSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dim: int

    @property
    def column(self) -> str:
        """The name of its score column."""
        return f"clip_{self.scorer.name}"

    def identity(self) -> dict[str, Any]:
        """Return what decides its scores, as plain data."""
        chosen = self.scorer
        by_folder = chosen.model.startswith(LOCAL)
        return {
            "version": VERSION,
            "model": "local-dir" if by_folder else chosen.model,
            "weights_sha256": self.weights_sha256,
            "precision": chosen.precision,
            "kinds": list(chosen.kinds),
            "batch": chosen.batch,
            "crop": {"side": self.crop.side, "resize": self.crop.resize, "interpolation": self.crop.interpolation},
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.crop.mask is None else {"mask": self.crop.mask.identity()}),
        }

    def masked(self, mask: TextMask) -> ClipSpec:
        """Return the scorer of the same pictures with their text covered."""
        scorer = self.scorer.model_copy(update={"name": self.scorer.name + MASKED, "embeddings": False})
        return dataclasses.replace(self, scorer=scorer, crop=dataclasses.replace(self.crop, mask=mask))

    @property
    def is_masked(self) -> bool:
        """Whether it scores pictures with their text covered."""
        return self.crop.mask is not None

    @property
    def loaded(self) -> str:
        """Name what is loaded for it: equal for a scorer and its masked one."""
        chosen = self.scorer
        return digest([chosen.model, chosen.pretrained, chosen.precision, chosen.seed, chosen.batch])


def resolve(scorer: ClipScorer) -> ClipSpec:
    """Find a scorer's configuration and the digest of its weights; UserMistake where there is none."""
    if scorer.model.startswith(LOCAL):
        folder = local_folder(scorer.model.removeprefix(LOCAL))
        config = _read_config(folder)
        weights = next((f for suffix in WEIGHT_SUFFIXES for f in sorted(folder.glob(f"*{suffix}"))), None)
        if weights is None:
            raise UserMistake(f"no weights in '{folder}' (score.clip '{scorer.name}')", "run `sightloom fit-scorer`")
        identity = digest([config, storage.sha256_file(weights)])
        return _spec(scorer, config["model_cfg"], config.get("preprocess_cfg", {}), identity)
    model_config = _built_in(scorer)
    if scorer.pretrained is None:
        return _spec(scorer, model_config, {}, digest(["random", model_config, scorer.seed]))
    if is_weights_file(scorer.pretrained):
        return _spec(scorer, model_config, {}, storage.sha256_file(scorer.pretrained))
    open_clip = importlib.import_module("open_clip")  # seconds of torch, which other scorers do without
    tag = open_clip.get_pretrained_cfg(scorer.model.replace("/", "-"), scorer.pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(scorer.model)) or "none"
        raise UserMistake(
            f"'{scorer.pretrained}' is neither a file nor a pretrained tag of '{scorer.model}'",
            f"tags: {known}; a file is given with its folder",
        )
    try:
        path = open_clip.download_pretrained(tag)
    except OSError as error:
        raise UserMistake(
            f"the weights '{scorer.pretrained}' of '{scorer.model}' cannot be downloaded: {error}",
            "give a file as `pretrained`, or run where the hub can be reached",
        ) from error
    return _spec(scorer, model_config, dict(tag), storage.sha256_file(path))


def is_weights_file(pretrained: str) -> bool:
    """Tell whether `pretrained` is a file of weights; a tag of open_clip has neither a folder nor a suffix."""
    path = Path(pretrained)
    return (path.suffix in WEIGHT_SUFFIXES or "/" in pretrained) and path.is_file()


def _built_in(scorer: ClipScorer) -> dict[str, Any]:
    """Read the configuration of a model that open_clip brings."""
    package = importlib.util.find_spec("open_clip")
    folder = Path((package.submodule_search_locations or [""])[0] if package is not None else "") / "model_configs"
    files = {file.stem: file for file in folder.glob("*.json")}
    name = scorer.model.replace("/", "-")
    if name not in files:
        near = ", ".join(difflib.get_close_matches(name, files, 3))
        raise UserMistake(
            f"'{scorer.model}' is no open_clip model (score.clip '{scorer.name}')",
            (f"did you mean {near}? " if near else "") + "see open_clip.list_models(), or give local-dir:<folder>",
        )
    config: dict[str, Any] = storage.read_json(str(files[name]))
    return config


def local_folder(uri: str) -> Path:
    """Return a folder on this machine with what is at `uri`; remote folders are copied first."""
    if storage.is_local(uri):
        path = storage.local_path(uri)
        if not path.is_dir():
            raise UserMistake(f"no folder at '{uri}'", "give the `out` of `sightloom fit-scorer`")
        return path
    folder = Path(tempfile.mkdtemp(prefix="sightloom-scorer-"))
    for info in storage.listing(uri):
        (folder / info.uri.rsplit("/", 1)[-1]).write_bytes(storage.read_bytes(info.uri))
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserMistake(f"no {CONFIG_FILE} in '{folder}'", "give the `out` of `sightloom fit-scorer`")
    config: dict[str, Any] = storage.read_json(str(file))
    if "model_cfg" not in config:
        raise UserMistake(f"'{file}' has no model_cfg", "give the `out` of `sightloom fit-scorer`")
    return config


def _spec(scorer: ClipScorer, model: dict[str, Any], picture: dict[str, Any], weights: str) -> ClipSpec:
    side = model["vision_cfg"].get("image_size", 224)
    resize = picture.get("resize_mode") or "shortest"
    interpolation = picture.get("interpolation") or "bicubic"
    if not isinstance(side, int) or resize not in ("shortest", "squash") or interpolation not in RESAMPLING:
        raise UserMistake(
            f"scorer '{scorer.name}' wants pictures of {side}, resized by '{resize}' and '{interpolation}'",
            "square sides with shortest or squash, bicubic or bilinear are supported",
        )
    mean = tuple(picture.get("mean") or MEAN)
    std = tuple(picture.get("std") or STD)
    return ClipSpec(scorer, weights, CropSpec(side, resize, interpolation), mean, std, int(model["embed_dim"]))


def write_config(folder: Path, model_config: dict[str, Any], spec: ClipSpec) -> None:
    """Write what open_clip's `local-dir:` reads beside the weights."""
    picture = {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.crop.interpolation,
        "resize_mode": spec.crop.resize,
    }
    content = {"model_cfg": model_config, "preprocess_cfg": picture}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True))

"""Loading a model from a folder, a hub id or an object store."""

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightloom import storage
from sightloom.config import digest
from sightloom.errors import UserMistake
from sightloom.model import attention, patch_embedding

_HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.jinja")
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class VLM:
    """A vision-language model with what turns words and pictures into its inputs, and the folder it was read from."""

    model: Any
    processor: Any
    tokenizer: Any
    folder: Path


def load(
    source: str,
    dtype: str = "float32",
    device: str = "cpu",
    cache: Path | None = None,
    pixels: tuple[int, int] | None = None,
) -> VLM:
    """Load a model in evaluation mode, ready for packs and for generation.

    Args:
        source: a folder, a hub id, or an object-store address (copied once into `cache`, by default
            `~/.cache/sightloom/models`).
        dtype: float32, bfloat16 or float16.
        pixels: the least and the most pixels of a picture, instead of the processor's own.

    Raises:
        UserMistake: nothing there that is a model, or an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserMistake(f"{dtype!r} is not a dtype; known: {', '.join(DTYPES)}")
    folder = fetch(source, cache)
    try:
        processor = processor_of(folder, pixels)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError) as error:
        raise UserMistake(f"cannot load a vision-language model from {source!r}: {error}") from error
    attention.register(model)
    patch_embedding.use_matrix_product(model)
    return VLM(model.to(device).eval(), processor, processor.tokenizer, folder)


def processor_of(folder: Path, pixels: tuple[int, int] | None = None) -> Any:
    """The processor of a model folder alone, with its bounds on pictures."""
    processor = AutoProcessor.from_pretrained(folder)
    bound_pictures(processor, pixels)
    return processor


def bound_pictures(processor: Any, pixels: tuple[int, int] | None) -> None:
    """Resize pictures to between so many pixels from now on, in place; None leaves the processor as it is."""
    if pixels is not None:
        processor.image_processor.size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}


def fetch(source: str, cache: Path | None = None) -> Path:
    """The local folder of a model: itself, an object store's folder copied under its files' digest, or the hub's copy.

    Raises:
        UserMistake: the address holds no config.json, or the hub does not give it.
    """
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise UserMistake(f"{source} is no model folder: it has no config.json")
        return Path(source)
    if "://" not in source:
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserMistake(f"there is no model folder {source}")
        return _from_hub(source)
    files = storage.listing(source)
    if not any(file.uri.endswith("/config.json") for file in files):
        raise UserMistake(f"{source} is no model folder: it has no config.json")
    cache = cache or Path.home() / ".cache" / "sightloom" / "models"
    target = cache / digest([(file.uri, file.size, file.version) for file in files])[:16]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        partial = Path(scratch) / "model"
        partial.mkdir()
        for file in files:
            with storage.local_copy(file.uri) as local:
                shutil.copyfile(local, partial / file.uri.rsplit("/", 1)[1])
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # another process was faster
            os.rename(partial, target)
    return target


def is_hub_id(source: str) -> bool:
    """Whether a model's address is one on the Hugging Face hub: `owner/name`, or `owner/name@revision`."""
    known = "://" in source or source.startswith((".", "/", "~")) or Path(source).is_dir()
    return not known and source.count("/") <= 1


def _from_hub(source: str) -> Path:
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserMistake(
            f"'{source}' is no folder, and as a hub id it cannot be fetched: {reason}",
            "where there is no network, download it elsewhere and give its folder or its address in an object store",
        ) from error

"""Loading a model from a folder, a hub id or an object store."""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightloom import storage
from sightloom.config import digest
from sightloom.errors import UserMistake
from sightloom.model import attention, patch_embedding

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class VLM:
    """A vision-language model with what turns words and pictures into its inputs. `folder` is None for a hub id."""

    model: Any
    processor: Any
    tokenizer: Any
    folder: Path | None


def load(source: str, dtype: str = "float32", device: str = "cpu", cache: Path | None = None) -> VLM:
    """Load a model in evaluation mode, ready for packs and for generation.

    Args:
        source: a folder, a hub id, or an object-store address (copied once into `cache`, by default
            `~/.cache/sightloom/models`).
        dtype: float32, bfloat16 or float16.

    Raises:
        UserMistake: nothing there that is a model, or an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserMistake(f"{dtype!r} is not a dtype; known: {', '.join(DTYPES)}")
    folder = fetch(source, cache)
    place = source if folder is None else str(folder)
    try:
        processor = AutoProcessor.from_pretrained(place)
        model = AutoModelForImageTextToText.from_pretrained(place, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError) as error:
        raise UserMistake(f"cannot load a vision-language model from {source!r}: {error}") from error
    attention.register(model)
    patch_embedding.use_matrix_product(model)
    return VLM(model.to(device).eval(), processor, processor.tokenizer, folder)


def fetch(source: str, cache: Path | None = None) -> Path | None:
    """The local folder of a model: itself, or an object store's folder copied under its files' digest; None: a hub id.

    Raises:
        UserMistake: the address holds no config.json.
    """
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise UserMistake(f"{source} is no model folder: it has no config.json")
        return Path(source)
    if "://" not in source:
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserMistake(f"there is no model folder {source}")
        return None
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
                (partial / file.uri.rsplit("/", 1)[1]).write_bytes(local.read_bytes())
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # another process was faster
            os.rename(partial, target)
    return target

"""An open_clip model as an embedder: items that arrive together share a forward pass (serving.md §2).

Shapes: N items, C channels, H and W pixels, T tokens, D features.
"""

import asyncio
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sightloom.config import Frozen
from sightloom.errors import UserMistake
from sightloom.later import Later

if TYPE_CHECKING:
    import open_clip
    import torch
else:  # the router knows what a feature is, and loads none of them
    open_clip, torch = Later("open_clip"), Later("torch")

_LOCAL: Final = "local-dir:"
Item = str | bytes  # a text, or an encoded picture that the media guard has passed


class ClipSettings(Frozen):
    """Which open_clip model: a name with pretrained weights, or `local-dir:<folder>`."""

    model: str
    pretrained: str | None = None
    device: str = "cpu"

    @property
    def folder(self) -> Path | None:
        """The folder of a local model."""
        return Path(self.model.removeprefix(_LOCAL)) if self.model.startswith(_LOCAL) else None

    @property
    def words(self) -> str:
        """As the command line writes it, after `NAME=`."""
        return self.model if self.pretrained is None else f"{self.model},{self.pretrained}"

    def absolute(self) -> "ClipSettings":
        """The same model for a process that has another working folder."""
        return self if self.folder is None else self.model_copy(update={"model": f"{_LOCAL}{self.folder.absolute()}"})


def app_name(name: str) -> str:
    """The Serve app of a model."""
    return f"clip-{name}"


def clip_settings(given: Iterable[str]) -> dict[str, ClipSettings]:
    """The open_clip models of a command line.

    Raises:
        UserMistake: one has no name.
    """
    found: dict[str, ClipSettings] = {}
    for text in given:
        name, sign, model = text.partition("=")
        if not (name and sign and model):
            raise UserMistake(f"--clip {text} has no name", "write NAME=local-dir:FOLDER or NAME=MODEL,PRETRAINED")
        architecture, _, pretrained = model.partition(",")
        found[name] = ClipSettings(model=architecture, pretrained=pretrained or None)
    return found


@dataclass(frozen=True, slots=True)
class Feature:
    """One item's feature, of length 1; `num_tokens`: read of a text, both ends included; `cut`: those not read."""

    vector_D: npt.NDArray[np.float32]
    num_tokens: int
    cut: int = 0


@dataclass(frozen=True, slots=True)
class About:
    """What a model says about itself; `logit_scale` is what it multiplies cosines by."""

    dim: int
    logit_scale: float
    logit_bias: float | None


class Embedder(Protocol):
    """Gives features; several at a time."""

    async def about(self) -> About:
        """What the model says about itself."""
        ...

    async def embed(self, item: Item) -> Feature:
        """The feature of a text or a picture."""
        ...


class ClipModel:
    """A loaded open_clip model.

    Raises:
        UserMistake: there is no such model.
    """

    def __init__(self, settings: ClipSettings) -> None:
        try:
            model, _, self._preprocess = open_clip.create_model_and_transforms(
                settings.model, settings.pretrained, device=settings.device
            )
            self._tokenizer = open_clip.get_tokenizer(settings.model)
        except (RuntimeError, OSError, ValueError, FileNotFoundError) as error:
            raise UserMistake(f"cannot load the open_clip model '{settings.model}': {error}") from error
        self._model = model.eval()
        self._device = settings.device
        bias = getattr(model, "logit_bias", None)
        dim = len(self.features(["a"])[0].vector_D)
        self.about = About(dim, float(model.logit_scale.detach().exp()), None if bias is None else float(bias.detach()))

    def features(self, items: Sequence[Item]) -> list[Feature]:
        """The features of some items: the texts in one pass, the pictures in another."""
        with torch.inference_mode():
            return self._features(items)

    def _features(self, items: Sequence[Item]) -> list[Feature]:
        found: dict[int, Feature] = {}
        texts = [(place, item) for place, item in enumerate(items) if isinstance(item, str)]
        if texts:
            tokens_NT = self._tokenizer([text for _, text in texts]).to(self._device)
            vectors_ND = self._model.encode_text(tokens_NT, normalize=True).float().cpu().numpy()
            for (place, text), tokens_T, vector_D in zip(texts, tokens_NT, vectors_ND, strict=True):
                found[place] = Feature(vector_D, int((tokens_T != 0).sum()), self._beyond(text, len(tokens_T)))
        pictures = [(place, item) for place, item in enumerate(items) if isinstance(item, bytes)]
        if pictures:
            images_NCHW = torch.stack([self._pixels(data) for _, data in pictures]).to(self._device)
            vectors_ND = self._model.encode_image(images_NCHW, normalize=True).float().cpu().numpy()
            for (place, _), vector_D in zip(pictures, vectors_ND, strict=True):
                found[place] = Feature(vector_D, 0)
        return [found[place] for place in range(len(items))]

    def _beyond(self, text: str, room: int) -> int:
        """How many of a text's tokens the model does not read."""
        if hasattr(self._tokenizer, "tokenizer"):  # one of Hugging Face's
            length = len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text)).input_ids)
        else:
            length = len(self._tokenizer.encode(text)) + 2  # both ends
        return max(0, length - room)

    def _pixels(self, data: bytes) -> Any:
        return self._preprocess(Image.open(io.BytesIO(data)).convert("RGB"))


class LocalEmbedder:
    """A model of this process; what arrives within a few milliseconds shares a pass."""

    def __init__(self, model: ClipModel, max_batch: int = 32, gather_s: float = 0.005) -> None:
        self._model = model
        self._max_batch = max_batch
        self._gather_s = gather_s
        self._waiting: list[tuple[Item, asyncio.Future[Feature]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def about(self) -> About:
        """What the model says about itself."""
        return self._model.about

    async def embed(self, item: Item) -> Feature:
        """The feature of a text or a picture."""
        future: asyncio.Future[Feature] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._gather_s)
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            try:
                features = await asyncio.to_thread(self._model.features, [item for item, _ in batch])
            except Exception as error:  # noqa: BLE001  whatever a model raises, who waits is told
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), feature in zip(batch, features, strict=True):
                if not future.done():
                    future.set_result(feature)

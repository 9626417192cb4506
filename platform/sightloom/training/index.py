"""The length index: how many tokens and patches each sample of a manifest becomes (training.md §5)."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sightloom import storage
from sightloom.config import digest
from sightloom.data.shards.manifest import Manifest
from sightloom.data.shards.reader import Sample, SampleReader, parse_sample, read_table
from sightloom.model.chat import TURN_END, Encoder, render
from sightloom.progress import Progress
from sightloom.records import Conversation
from sightloom.training.order import keyed

_FORMAT: Final = 2
_PROCESSOR: Final = ("tokenizer.json", "processor_config.json", "preprocessor_config.json")
_COLUMNS: Final = ("uid", "offset", "size", "kind", "width", "height", "shard")
_TEXT_DRAW: Final = 5  # purpose of the keyed draw
_EMPTY_BLOCK_TOKENS: Final = 8  # `<think>`, two line breaks, `</think>`, two line breaks, at most


@dataclass(frozen=True, slots=True)
class LengthIndex:
    """One row a sample of the manifest, in shard and tar order.

    `direct`: tokens without worked steps (a pair: its dialogue and the caption alone); `thinking`: the most tokens that
    the sample takes in any rendering; `patches`: of its picture. A preference is two documents, each with the picture.
    """

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    direct: npt.NDArray[np.int32]
    thinking: npt.NDArray[np.int32]
    patches: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.shard)


def index_for(manifest: Manifest, model_folder: Path, encoder: Encoder, out: Path, progress: Progress) -> Path:
    """Build the index of a manifest for a model's tokenizer and picture bounds, or find it built; returns its file."""
    parts = [storage.sha256_file(file) for name in _PROCESSOR if (file := model_folder / name).is_file()]
    identity = {"format": _FORMAT, "manifest": manifest.digest, "processor": parts, "pixels": encoder.bounds}
    name = digest(identity)
    path = out / f"index-{name[:12]}.npz"
    if not path.exists():
        columns = _measure(manifest, encoder, progress)
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(columns, field.name) for field in fields(columns)})
        storage.write(str(path), buffer.getvalue())
    return path


def read_index(path: str | Path) -> LengthIndex:
    """Read an index file."""
    with np.load(path) as data:
        return LengthIndex(**{field.name: data[field.name] for field in fields(LengthIndex)})


def corpus_texts(manifest: Manifest, seed: int, limit: int) -> Iterator[str]:
    """Texts of a seeded sample of the shards, for a tokenizer: every turn and every worked reasoning."""
    table = read_table(manifest, _COLUMNS)
    rows = np.sort(keyed(seed, _TEXT_DRAW).permutation(table.num_rows)[:limit])
    for sample in _samples(manifest, table.take(pa.array(rows))):
        conversation = sample.conversation
        for message in (*conversation.messages, conversation.chosen, conversation.rejected):
            if message is None:
                continue
            yield message.text
            if message.reasoning:
                yield message.reasoning


def _measure(manifest: Manifest, encoder: Encoder, progress: Progress) -> LengthIndex:
    table = read_table(manifest, _COLUMNS)
    direct, thinking, patches = (np.zeros(table.num_rows, np.int32) for _ in range(3))
    sides: Iterable[tuple[Any, Any]] = zip(
        table.column("width").to_pylist(), table.column("height").to_pylist(), strict=True
    )
    with progress.step("index lengths", total=table.num_rows, unit="samples") as step:
        for row, (sample, (width, height)) in enumerate(zip(_samples(manifest, table), sides, strict=True)):
            images = 0
            if sample.image is not None:
                patches[row] = encoder.num_patches(width, height) * (2 if sample.kind == "preference" else 1)
                images = encoder.num_image_tokens(width, height) - 1
            direct[row], thinking[row] = _lengths(sample, encoder, images)
            if row % 500 == 499:
                step.advance(500)
    numbers = {name: table.column(name).to_numpy() for name in ("shard", "offset", "size")}
    return LengthIndex(
        numbers["shard"].astype(np.int32),
        numbers["offset"].astype(np.int64),
        numbers["size"].astype(np.int32),
        direct,
        thinking,
        patches,
    )


def _lengths(sample: Sample, encoder: Encoder, images: int) -> tuple[int, int]:
    conversation = sample.conversation.with_image() if sample.image is not None else sample.conversation
    if sample.kind == "preference":
        both = [_conversation_lengths(dialogue, encoder, images) for dialogue in conversation.compared()]
        return both[0][0] + both[1][0], both[0][1] + both[1][1]
    if sample.kind == "pair":
        alone = encoder.num_tokens(conversation.messages[-1].text + TURN_END)
        total = encoder.num_tokens(render(conversation.messages)[0]) + images + alone
        return total, total
    return _conversation_lengths(conversation, encoder, images)


def _conversation_lengths(conversation: Conversation, encoder: Encoder, images: int) -> tuple[int, int]:
    full = encoder.num_tokens(render(conversation.messages)[0]) + images
    if not any(message.reasoning for message in conversation.messages):
        return full, full + _EMPTY_BLOCK_TOKENS
    return encoder.num_tokens(render(without_reasoning(conversation).messages)[0]) + images, full + _EMPTY_BLOCK_TOKENS


def without_reasoning(conversation: Conversation) -> Conversation:
    """The same dialogue with the worked steps left out."""
    messages = tuple(
        type(message)(message.role, message.text, message.image, None) for message in conversation.messages
    )
    return Conversation(
        conversation.id, conversation.kind, conversation.task, conversation.domain, messages, conversation.answer
    )


def _samples(manifest: Manifest, table: pa.Table) -> Iterator[Sample]:
    reader = SampleReader(manifest)
    places = (table.column(name).to_pylist() for name in ("shard", "offset", "size"))
    try:
        for shard, offset, size in zip(*places, strict=True):
            yield parse_sample(reader.fetch(shard, offset, size))
    finally:
        reader.close()

"""Measuring a chunk: decode each distinct picture once, compute the base columns, cut what the scorers need."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from sightloom.data.decode import EXTENSIONS, Undecodable, decode
from sightloom.data.signals.caption import caption_signals
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.signals.crops import CropSpec, views
from sightloom.data.signals.picture import hash_inputs, perceptual_hashes, picture_signals, shrink
from sightloom.data.sources.config import KeptType
from sightloom.data.sources.records import OK, find

VERSION = 2
INTERNAL = "internal_error"
TEXT_KEPT = 1000
ARROW_TYPES: dict[KeptType, pa.DataType] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "string": pa.string(),
    "bool": pa.bool_(),
}
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "uid": (pa.binary(16), "first 128 bits of SHA-256(image, 0, text or record)"),
    "status": (pa.string(), "ok, or the reason why the record cannot be used"),
    "detail": (pa.string(), "more about the status"),
    "kind": (pa.string(), "pair, conversation or preference"),
    "src": (pa.string(), "address of the source file"),
    "src_pos": (pa.int64(), "position of the record in it"),
    "src_offset": (pa.int64(), "first byte of the record's members, where they are one range"),
    "src_size": (pa.int64(), "length of that range"),
    "source_key": (pa.string(), "the source's own name of the record"),
    "domain": (pa.string(), "as the source declares it"),
    "text": (pa.string(), "first 1,000 characters of the caption or the first question"),
    "payload_bytes": (pa.int64(), "image, text and JSON together"),
    "text_chars": (pa.int32(), "characters"),
    "text_words": (pa.int32(), "words"),
    "text_lang": (pa.string(), "language code"),
    "text_lang_p": (pa.float32(), "probability of the language"),
    "text_repeat": (pa.float32(), "1 - distinct/all words"),
    "text_boilerplate": (pa.bool_(), "file names, addresses, mark-up"),
    "text_hash": (pa.uint64(), "equal for equal texts"),
    "task": (pa.string(), "task of a dialogue"),
    "turns": (pa.int32(), "the assistant's turns"),
    "answer_kind": (pa.string(), "kind of the checkable answer"),
    "reasoning_chars": (pa.int32(), "characters of worked steps"),
    "width": (pa.int32(), "pixels, upright"),
    "height": (pa.int32(), "pixels, upright"),
    "image_bytes": (pa.int64(), "bytes of the image file"),
    "frames": (pa.int32(), "frames of an animation"),
    "format": (pa.string(), "image type by content"),
    "mode": (pa.string(), "Pillow's pixel mode"),
    "alpha": (pa.bool_(), "has transparency"),
    "aspect": (pa.float32(), "long side / short side"),
    "sharpness": (pa.float32(), "variance of the Laplacian"),
    "entropy": (pa.float32(), "bits of the grey histogram"),
    "flatness": (pa.float32(), "share of the commonest grey"),
    "sha256": (pa.string(), "SHA-256 of the image bytes, hex"),
    "blake3": (pa.binary(32), "BLAKE3 of the image bytes: packing proves by it that they are the scored ones"),
    "phash": (pa.binary(8), "DCT hash, 64 bits"),
    "phash256": (pa.binary(32), "DCT hash, 256 bits"),
    "thumb": (pa.binary(48), "4x4 RGB thumbnail"),
}
MIRRORED = ("phash_mirror", pa.binary(40), "both DCT hashes of the mirrored picture")  # a column where it is asked for


@dataclass(slots=True)
class Measured:
    """Base columns of a chunk [N], and for each crop the rows' pictures uint8 [n, side, side, 3] with the texts."""

    table: pa.Table
    status: dict[str, int]
    rows: list[int]
    texts: list[str]
    kinds: list[str]
    crops: list[np.ndarray[Any, Any]]


@dataclass(slots=True)
class Pictures:
    """The distinct pictures of a chunk."""

    facts: list[dict[str, Any]] = field(default_factory=list)
    coarse: list[Any] = field(default_factory=list)
    fine: list[Any] = field(default_factory=list)
    thumbs: list[bytes] = field(default_factory=list)
    crops: list[list[Any]] = field(default_factory=list)


def trusting(data: bytes) -> str | None:
    """Let every picture be decoded."""
    del data
    return None


def measure(
    records: pa.Table,
    src: str,
    limits: DecodeLimits,
    keep_fields: dict[str, KeptType],
    specs: Sequence[CropSpec],
    crop_kinds: frozenset[str],
    danger: Callable[[bytes], str | None] = trusting,
    mirror: bool = False,
) -> Measured:
    """Compute the base columns of a chunk.

    Args:
        records: a table of `chunks.SCHEMA`.
        src: the file's address.
        limits: what is refused before decoding.
        keep_fields: source fields that become columns `src_<name>`.
        specs: the crops to make.
        crop_kinds: the kinds of record that are to be scored.
        danger: says why a picture must not be decoded here, if it must not: it becomes `internal_error`.
        mirror: hash the mirrored pictures too, as column `phash_mirror`.
    """
    pictures, known = Pictures(), dict[str, int | tuple[str, str]]()
    rows = [dict.fromkeys(COLUMNS) for _ in range(records.num_rows)]
    chosen: list[tuple[int, int]] = []
    texts: list[str] = []
    for index, record in enumerate(records.to_pylist()):
        row = rows[index]
        row.update(_identity(record, src), **caption_signals(record["text"]))
        if record["image"]:
            sha256 = str(row["sha256"])
            if record["status"] == OK and sha256 not in known:
                refusal = danger(record["image"])
                known[sha256] = (INTERNAL, refusal[:300]) if refusal else look(record["image"], limits, pictures, specs)
            found = known.get(sha256)
            if isinstance(found, int) and record["status"] == OK:
                row.update(pictures.facts[found], _picture=found)
                if record["kind"] in crop_kinds:
                    chosen.append((index, found))
                    texts.append(record["text"])
            elif isinstance(found, tuple) and record["status"] == OK:
                row["status"], row["detail"] = found
        for name in keep_fields:
            row[f"src_{name}"] = find(json.loads(record["meta"]), name)
    _fill_hashes(rows, pictures, mirror)
    types = base_types(mirror)
    table = pa.Table.from_arrays(
        [pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()]
        + [_kept(rows, name, ARROW_TYPES[kind]) for name, kind in keep_fields.items()],
        names=[*types, *(f"src_{name}" for name in keep_fields)],
    )
    crops = [
        np.stack([pictures.crops[found][number] for _, found in chosen])
        if chosen
        else np.zeros((0, spec.side, spec.side, 3), np.uint8)
        for number, spec in enumerate(specs)
    ]
    status = dict(Counter(str(row["status"]) for row in rows))
    kinds = [str(rows[index]["kind"]) for index, _ in chosen]
    return Measured(table, status, [index for index, _ in chosen], texts, kinds, crops)


def base_types(mirror: bool) -> dict[str, pa.DataType]:
    """Return the type of each base column; `mirror` adds the hashes of mirrored pictures."""
    name, mirrored, _ = MIRRORED
    return {column: kind for column, (kind, _) in COLUMNS.items()} | ({name: mirrored} if mirror else {})


def _identity(record: dict[str, Any], src: str) -> dict[str, Any]:
    image, meta = record["image"] or b"", record["meta"]
    text = record["text"].encode("utf-8", "replace")
    content = text if record["kind"] == "pair" else meta
    uid = bytes.fromhex(record["uid"]) if record["uid"] else hashlib.sha256(image + b"\0" + content).digest()[:16]
    pair_bytes = len(text) if record["kind"] == "pair" else 0
    return {
        "uid": uid,
        "src": src,
        "src_pos": record["pos"],
        "src_offset": record["offset"],
        "src_size": record["size"],
        "source_key": record["key"],
        "text": record["text"][:TEXT_KEPT],
        "payload_bytes": len(image) + pair_bytes + len(meta),
        "sha256": hashlib.sha256(image).hexdigest() if image else None,
        "blake3": blake3(image).digest() if image else None,
        "image_bytes": len(image) if image else None,
        **{name: record[name] for name in ("status", "detail", "kind", "domain")},
        **{name: record[name] for name in ("task", "turns", "answer_kind", "reasoning_chars")},
    }


def look(data: bytes, limits: DecodeLimits, pictures: Pictures, specs: Sequence[CropSpec]) -> int | tuple[str, str]:
    """Decode one picture and keep what is needed of it: its number, or (status, detail)."""
    try:
        decoded = decode(data, limits)
    except Undecodable as refusal:
        return refusal.status, refusal.detail[:300]
    small = shrink(decoded.image)
    coarse, fine, thumb = hash_inputs(small)
    pictures.coarse.append(coarse)
    pictures.fine.append(fine)
    pictures.thumbs.append(thumb)
    pictures.crops.append(views(decoded.image, specs))
    pictures.facts.append(
        {
            "width": decoded.width,
            "height": decoded.height,
            "frames": decoded.frames,
            "format": EXTENSIONS[decoded.format],
            "mode": decoded.mode,
            "alpha": decoded.alpha,
            **picture_signals(small, decoded.width, decoded.height),
        }
    )
    return len(pictures.facts) - 1


def _fill_hashes(rows: list[dict[str, Any]], pictures: Pictures, mirror: bool) -> None:
    if not pictures.facts:
        return
    coarse, fine = np.stack(pictures.coarse), np.stack(pictures.fine)
    short, long = perceptual_hashes(coarse, 8), perceptual_hashes(fine, 16)
    turned = (perceptual_hashes(coarse[:, :, ::-1], 8), perceptual_hashes(fine[:, :, ::-1], 16)) if mirror else None
    for row in rows:
        number = row.pop("_picture", None)
        if number is not None:
            row["phash"], row["phash256"] = short[number].tobytes(), long[number].tobytes()
            row["thumb"] = pictures.thumbs[number]
            row[MIRRORED[0]] = turned[0][number].tobytes() + turned[1][number].tobytes() if turned else None


def _kept(rows: list[dict[str, Any]], name: str, kind: pa.DataType) -> pa.Array:
    """Return one kept field as a column; a value of another type becomes null."""
    values = []
    for row in rows:
        value = row.get(f"src_{name}")
        try:
            values.append(None if value is None else pa.scalar(value, kind).as_py())
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            values.append(None)
    return pa.array(values, kind)

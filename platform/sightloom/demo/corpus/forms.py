"""The raw forms in which users hold such data: WebDataset tars of pairs, parquet of questions with image bytes."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

QUESTIONS: Final = pa.schema([("image", pa.binary()), ("record", pa.string()), ("domain", pa.string())])
TRUTH: Final = pa.schema(
    [("file", pa.string()), ("key", pa.string()), ("domain", pa.string()), ("defect", pa.string())]
)


@dataclass(frozen=True, slots=True)
class RawPair:
    """One entry of a tar: an image file of `extension`, its caption, and facts beside it."""

    key: str
    extension: str
    image: bytes
    caption: str
    facts: dict[str, Any]


def write_tar(path: Path, pairs: Sequence[RawPair]) -> None:
    """A WebDataset tar (`<key>.png|jpg`, `<key>.txt`, `<key>.json`); the same pairs give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            facts = json.dumps(pair.facts, sort_keys=True).encode()
            for extension, data in ((pair.extension, pair.image), ("txt", pair.caption.encode()), ("json", facts)):
                member = tarfile.TarInfo(f"{pair.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    put(path, buffer.getvalue())


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, there whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    put(path, sink.getvalue().to_pybytes())


def put(path: Path, data: bytes) -> None:
    """Write aside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)

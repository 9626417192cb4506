import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sightloom import storage
from sightloom.config import canonical_json, load
from sightloom.data.ledger import parquet_bytes
from sightloom.data.shards.manifest import FORMAT, Manifest, Shard, Totals, read_manifest
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.demo.corpus.defects import encode
from sightloom.demo.corpus.painters import sample
from sightloom.model.chat import Encoder
from sightloom.model.load import load as load_model
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.records import Conversation, Message, Pair
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.worker import StageOrder

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"

UNHELPFUL = "I do not know what this is."


def write_shards(
    folder: Path, num_pairs: int, num_pictures: int, seed: int = 5, per_shard: int = 60, num_preferences: int = 0
) -> str:
    """Shards of the procedural corpus as `sightloom curate` leaves them, without the curation; returns the manifest.

    A preference prefers the picture's caption to UNHELPFUL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[list[tuple[str, bytes]], dict[str, Any]]] = []
    for index in range(num_pairs + num_pictures + num_preferences):
        one = sample(seed, index)
        image = encode(one.image, "png")
        records: list[Conversation | Pair] = [Pair(one.caption, one.domain)]
        if index >= num_pairs + num_pictures:
            asked = (Message("user", "What is shown?", image=True),)
            better, worse = Message("assistant", one.caption), Message("assistant", UNHELPFUL)
            id = f"{index:08d}"
            records = [Conversation(id, "preference", "caption", one.domain, asked, None, better, worse)]
        elif index >= num_pairs:
            records = list(one.records(f"{index:08d}"))
        for number, record in enumerate(records):
            rows.append(_row(record, image, f"{index:08d}/{number}", one.domain, one.image.size))
    shards = [
        _write_shard(folder, f"pool-{number:06d}", rows[start : start + per_shard])
        for number, start in enumerate(range(0, len(rows), per_shard))
    ]
    totals = Totals(rows_in=len(rows), kept=len(rows), dropped={}, failed=0, samples=len(rows), bytes=0, domains={})
    manifest = Manifest(
        format=FORMAT, name="pool", code={}, recipe={}, shards=tuple(shards), totals=totals, columns={}, fingerprints={}
    )
    manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
    uri = str(folder / "manifest.json")
    storage.write(uri, canonical_json(manifest.model_dump(mode="json")))
    return uri


def _row(
    record: Conversation | Pair, image: bytes, key: str, domain: str, size: tuple[int, int]
) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    uid = hashlib.sha256(key.encode()).digest()[:16]
    own = {"domain": domain}
    row: dict[str, Any] = {
        "key": uid.hex(), "uid": uid, "image_ext": "png", "kind": "pair", "domain": domain, "task": None,
        "width": size[0], "height": size[1], "source_key": key, "sha256": hashlib.sha256(image).hexdigest(),
        "turns": None, "answer_kind": None, "reasoning_chars": None,
    }  # fmt: skip
    if isinstance(record, Pair):
        meta = {"uid": uid.hex(), "sightloom": own}
        return [("png", image), ("txt", record.text.encode()), ("json", canonical_json(meta))], row
    row |= {
        "kind": record.kind, "task": record.task, "turns": record.turns, "reasoning_chars": record.reasoning_chars,
        "answer_kind": record.answer.kind if record.answer else None,
    }  # fmt: skip
    return [("png", image), ("json", canonical_json(record.to_json() | {"uid": uid.hex(), "sightloom": own}))], row


_SCHEMA = pa.schema(
    [("key", pa.string()), ("uid", pa.binary(16)), ("image_ext", pa.string()), ("kind", pa.string()),
     ("domain", pa.string()), ("task", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
     ("source_key", pa.string()), ("sha256", pa.string()), ("turns", pa.int32()), ("answer_kind", pa.string()),
     ("reasoning_chars", pa.int32()), ("offset", pa.int64()), ("size", pa.int64())]
)  # fmt: skip


def _write_shard(folder: Path, name: str, rows: list[tuple[list[tuple[str, bytes]], dict[str, Any]]]) -> Shard:
    with TarWriter(folder / f"{name}.tar") as writer:
        places = [writer.add(row["key"], members) for members, row in rows]
    full = [row | {"offset": offset, "size": size} for (_, row), (offset, size) in zip(rows, places, strict=True)]
    data = parquet_bytes(pa.Table.from_pylist(full, schema=_SCHEMA))
    (folder / f"{name}.parquet").write_bytes(data)
    return Shard(
        name=f"{name}.tar", samples=len(rows), bytes=writer.offsets[-1], sha256=writer.digest.hexdigest(),
        index_sha256="", table=f"{name}.parquet", table_sha256=hashlib.sha256(data).hexdigest(), domains={}, kinds={},
    )  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a small manifest: 150 captioned pictures, 40 with questions, 40 with a preference."""
    return write_shards(tmp_path_factory.mktemp("shards"), 150, 40, num_preferences=40)


@pytest.fixture(scope="module")
def start(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    return build_folder("nano", corpus_texts(read_manifest(shards), 1, 300), folder, seed=1)


@pytest.fixture(scope="module")
def index(shards: str, start: Path) -> Path:
    encoder = Encoder(load_model(str(start)).processor)
    return index_for(read_manifest(shards), start, encoder, start.parent, NullProgress())


@pytest.fixture
def order(shards: str, start: Path, index: Path, tmp_path: Path) -> Callable[..., StageOrder]:
    def make(number: int, folder: str, *overrides: str) -> StageOrder:
        key = f"stages.{number}"
        sets = [f"{key}.steps=3", "data.manifest=x", f"{key}.batch.max_tokens=400", f"{key}.batch.window=64"]
        stage = load(Curriculum, NANO, [*sets, *(f"{key}.{override}" for override in overrides)]).stages[number]
        return StageOrder(
            number=number, digest="d" * 64, seed=3, stage=stage, parts=((shards, str(index)),), heldout=0.1,
            start=str(start), folder=str(tmp_path / folder), store=str(tmp_path / folder / "checkpoints"),
            checkpoint={"every_steps": 2}, info={"stage": stage.name},
        )  # fmt: skip

    return make


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

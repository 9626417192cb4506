import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightloom.config import canonical_json, digest
from sightloom.data.shards.manifest import FORMAT, Manifest
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Row
from sightloom.records import Answer, Conversation, Message

COLOURS = ("red", "green", "blue", "yellow")


def png(colour: str, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def example(id: str, answer: str = "red", domain: str = "art", task: str = "colour", **more: Any) -> Example:
    image = png(answer) if "image" not in more else more.pop("image")
    right = Answer("choice", answer, COLOURS)
    question = Conversation(id, "conversation", task, domain, (Message("user", "What colour?", image=True),), right)
    return Example(id, "tests", domain, task, image, question, right, more.pop("group", id), **more)


def row(id: str, right: bool, domain: str = "art", group: str = "", well_formed: bool = True) -> Row:
    return Row(
        "tests", id, domain, "colour", "choice", group or id, False, "", "What colour?", "red",
        "red" if right else "blue", None, right, {"reward": float(right), "relaxed": float(right)}, "off", well_formed,
        3, 1.0, "stop", None, "",
    )  # fmt: skip


def write_shards(folder: Path, samples: list[tuple[dict[str, Any], bytes]]) -> Path:
    """Shards as data.md lays them out, written by the standard library: an oracle for the reader."""
    folder.mkdir(parents=True)
    rows, counts, kinds = [], {}, {}
    with tarfile.open(folder / "t-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for record, image in samples:
            uid = hashlib.sha256(canonical_json(record)).digest()[:16]
            body = canonical_json({**record, "uid": uid.hex(), "sightloom": {"domain": record["domain"]}})
            offset = tar.offset
            for extension, data in (("png", image), ("json", body)):
                info = tarfile.TarInfo(f"{uid.hex()}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            counts[record["domain"]] = counts.get(record["domain"], 0) + 1
            kinds[record["kind"]] = kinds.get(record["kind"], 0) + 1
            rows.append({
                "key": uid.hex(), "uid": uid, "offset": offset, "size": tar.offset - offset, "kind": record["kind"],
                "domain": record["domain"], "task": record["task"], "sha256": hashlib.sha256(image).hexdigest(),
                "answer_kind": record["answer"]["kind"] if "answer" in record else None,
                "reasoning_chars": len(record.get("reasoning", "")), "width": 32,
            })  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=pa.schema([
        ("key", pa.string()), ("uid", pa.binary(16)), ("offset", pa.int64()), ("size", pa.int64()),
        ("kind", pa.string()), ("domain", pa.string()), ("task", pa.string()), ("sha256", pa.string()),
        ("answer_kind", pa.string()), ("reasoning_chars", pa.int32()), ("width", pa.int32()),
    ]))  # fmt: skip
    pq.write_table(table, folder / "t-000000.parquet")
    shard = {
        "name": "t-000000.tar", "samples": len(rows), "bytes": (folder / "t-000000.tar").stat().st_size,
        "sha256": "0" * 64, "index_sha256": "0" * 64, "table": "t-000000.parquet", "table_sha256": "0" * 64,
        "domains": counts, "kinds": kinds,
    }  # fmt: skip
    totals = {
        "rows_in": len(rows), "kept": len(rows), "dropped": {}, "failed": 0, "samples": len(rows),
        "bytes": shard["bytes"], "domains": counts,
    }  # fmt: skip
    manifest = Manifest(
        format=FORMAT, name="t", code={}, recipe={}, shards=(shard,), totals=totals, columns={}, fingerprints={}
    )  # fmt: skip
    data = manifest.model_dump(mode="json")
    data["digest"] = digest({name: value for name, value in data.items() if name != "digest"})
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder / "manifest.json"


def question(id: str, colour: str, domain: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "kind": "conversation", "task": "colour", "domain": domain,
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"What colour? ({id})"}]},
            {"role": "assistant", "content": colour},
        ],
        "answer": {"kind": "choice", "value": colour, "options": list(COLOURS)}, **more,
    }  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of two domains, two questions each, and one dialogue without an answer a picture."""
    samples = []
    for number in range(60):
        image = png(f"#{number:02x}{number:02x}40")
        domain = "art" if number % 2 else "ui"
        for turn in range(2):
            more = {"reasoning": "It is red. So: red."} if turn else {}
            samples.append((question(f"q{number}-{turn}", "red", domain, **more), image))
        dialogue = question(f"d{number}", "red", domain)
        del dialogue["answer"]
        samples.append((dialogue, image))
    return write_shards(tmp_path_factory.mktemp("suite") / "shards", samples)


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An untrained nano folder."""
    from sightloom.model.scratch import build_folder

    texts = [f"What colour? {colour} is the answer" for colour in COLOURS] * 20
    yield build_folder("nano", texts, tmp_path_factory.mktemp("model") / "nano", seed=0)

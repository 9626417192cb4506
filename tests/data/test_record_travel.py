"""Dialogues and preferences on their way through every kind of source into shards and back."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightloom.data.measure import measure
from sightloom.data.shards.config import PackConfig
from sightloom.data.shards.pack import ShardJob, build
from sightloom.data.shards.plan import plan_shards, shard_slices
from sightloom.data.shards.reader import parse_sample, split_members
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import list_files, read_chunks
from sightloom.data.sources.config import FolderSource, ParquetSource, WebDatasetSource
from sightloom.records import Conversation

REPLY = {"role": "assistant", "content": "A cat.", "reasoning": "Whiskers, tail."}
HEAD = {"task": "describe", "domain": "natural"}
RECORDS: list[dict[str, Any]] = [
    {**HEAD, "id": "plain", "kind": "conversation", "messages": [{"role": "user", "content": "What is it? 🙂"}, REPLY]},
    {**HEAD, "id": "long", "kind": "conversation", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]}, REPLY,
        {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]},
    {**HEAD, "id": "prompt", "kind": "conversation", "messages": [{"role": "user", "content": "How many?"}],
     "answer": {"kind": "number", "value": 3, "tolerance": 0.05}},
    {**HEAD, "id": "point", "kind": "conversation", "messages": [{"role": "user", "content": "Where?"}],
     "answer": {"kind": "point", "value": [10, 990.5]}},
    {**HEAD, "id": "choice", "kind": "conversation", "reasoning": "It is striped.",
     "messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "B"}],
     "answer": {"kind": "choice", "value": "B", "options": ["dog", "tiger"]}},
    {**HEAD, "id": "preferred", "kind": "preference", "messages": [{"role": "user", "content": "Describe it."}],
     "chosen": REPLY, "rejected": {"role": "assistant", "content": "A dog."}},
]  # fmt: skip


def source_of(kind: str, folder: Path, scene: Any, make_tar: Any) -> Any:
    """The records as a source: with a picture each, but for the first, which has none."""
    pictures = [None if record["id"] == "plain" else scene(number) for number, record in enumerate(RECORDS)]
    if kind == "webdataset":
        samples = [
            (record["id"], ({"png": picture} if picture else {}) | {"json": json.dumps(record).encode()})
            for record, picture in zip(RECORDS, pictures, strict=True)
        ]
        return WebDatasetSource(kind="webdataset", uri=str(make_tar(folder / "a.tar", samples)))
    if kind == "folder":
        lines = []
        for record, picture in zip(RECORDS, pictures, strict=True):
            (folder / f"{record['id']}.png").write_bytes(picture or scene(99))
            lines.append(json.dumps({"file_name": f"{record['id']}.png", **record}))
        (folder / "captions.jsonl").write_text("\n".join(lines))
        return FolderSource(kind="folder", uri=str(folder))
    if kind == "parquet-json":
        table = pa.table({"image": pictures, "record": [json.dumps(record) for record in RECORDS]})
    else:  # columns of their own; Arrow has one type a column, so of the answers only the numbers are taken along
        rows = [record for record in RECORDS if record["id"] in ("plain", "prompt", "preferred")]
        names = ("id", "kind", "task", "domain", "messages", "answer", "chosen", "rejected")
        columns = {name: [row.get(name) for row in rows] for name in names}
        table = pa.table({"image": [None, scene(1), scene(2)], **columns})
    pq.write_table(table, folder / "a.parquet")
    return ParquetSource(kind="parquet", uri=str(folder / "a.parquet"))


@pytest.mark.parametrize("kind", ["webdataset", "folder", "parquet-json", "parquet-columns"])
def test_every_kind_of_record_comes_out_of_the_shards_equal(
    kind: str, tmp_path: Path, scene: Any, make_tar: Any
) -> None:
    (file,) = list_files(source_of(kind, tmp_path, scene, make_tar), 32)
    (chunk,) = read_chunks(file, frozenset())
    table = measure(chunk.table, file.uri, DecodeLimits(), {}, (), frozenset()).table
    assert table.column("status").to_pylist() == ["ok"] * table.num_rows, table.column("detail").to_pylist()
    table = table.append_column("_file", pa.array([0] * table.num_rows, pa.int32()))
    ((name, rows),) = shard_slices(plan_shards(table, PackConfig(), 0, 0), "t")
    build(ShardJob(name, rows, {0: file}, (), str(tmp_path / "out"), str(tmp_path / "out" / "c")))
    shard, data = pq.read_table(tmp_path / "out" / f"{name}.parquet"), (tmp_path / "out" / f"{name}.tar").read_bytes()
    originals = {record["id"]: Conversation.from_json(record) for record in RECORDS}
    found = {}
    for row in shard.to_pylist():
        sample = parse_sample(split_members(data[row["offset"] : row["offset"] + row["size"]], name, row["offset"]))
        found[sample.conversation.id] = sample
        original = originals[sample.conversation.id]
        assert sample.conversation == (original if sample.image is None else original.with_image())
        assert (row["kind"], row["task"], row["domain"]) == (original.kind, "describe", "natural")
        assert row["has_preference"] == (original.kind == "preference") and row["turns"] == original.turns
        assert row["answer_kind"] == (original.answer.kind if original.answer else None)
        assert row["reasoning_chars"] == original.reasoning_chars
    assert len(found) == (3 if kind == "parquet-columns" else len(RECORDS))


def test_broken_records_are_rows_with_the_pointer_and_end_nothing(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    good = RECORDS[2]
    bodies = [
        json.dumps({**good, "messages": [*good["messages"], {"role": "user", "content": "again"}]}),
        json.dumps({**good, "answer": {"kind": "box", "value": [1, 2, 3, 4000]}}),
        json.dumps({**good, "messages": [{"role": "user", "content": "\\ud83d"}]}).replace("\\\\ud83d", "\\ud83d"),
        "[" * 200_000,
        json.dumps({**good, "weight": float("nan"), "note": "half"}).replace("half", "\\ud83d"),
    ]
    samples = [(f"{n}", {"png": scene(n), "json": body.encode()}) for n, body in enumerate(bodies)]
    samples.append(
        ("not-utf8-\udcff", {"png": scene(9), "txt": b"a cat", "json": b'{"similarity": NaN, "big": 1e999}'})
    )
    make_tar(tmp_path / "a.tar", samples)
    rows = [
        row
        for file in list_files(WebDatasetSource(kind="webdataset", uri=str(tmp_path / "a.tar")), 32)
        for chunk in read_chunks(file, frozenset())
        for row in chunk.table.to_pylist()
    ]
    details = [row["detail"] for row in rows]
    assert details[0] == "messages.1.role: expected assistant, got user"
    assert details[1] == "answer.value: expected 4 numbers in 0–1000"
    assert details[2].startswith("messages.0.content: holds a NUL or half a surrogate pair")
    assert details[3].startswith("json: not JSON")
    assert [row["status"] for row in rows[:4]] == ["invalid_record"] * 4
    kept = json.loads(rows[4]["meta"])
    assert rows[4]["status"] == "ok" and (kept["weight"], kept["note"]) == (None, "?")
    assert rows[5]["status"] == "ok" and rows[5]["key"] == "not-utf8-?"
    assert json.loads(rows[5]["meta"]) == {"similarity": None, "big": None}

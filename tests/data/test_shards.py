import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sightloom.data.artifacts import write_foreign
from sightloom.data.measure import measure
from sightloom.data.shards.config import PackConfig
from sightloom.data.shards.heldout import heldout_mask, is_heldout
from sightloom.data.shards.manifest import FORMAT, BuiltShard, Manifest, read_manifest
from sightloom.data.shards.pack import ShardJob, build
from sightloom.data.shards.plan import plan_shards, shard_slices
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.shards.verify import verify
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import list_files, read_chunks
from sightloom.data.sources.config import WebDatasetSource
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import NullProgress

RECORD = {
    "id": "q1", "kind": "conversation", "task": "count", "domain": "art",
    "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3", "reasoning": "1+2"}],
    "answer": {"kind": "number", "value": 3},
}  # fmt: skip


@pytest.fixture
def packed(tmp_path: Path, scene: Any, make_tar: Any) -> Manifest:
    """Twelve pairs and a question, packed into shards of five."""
    samples = [
        (f"dir/n{n:02d}", {"png": scene(n), "txt": f"cat {n}".encode(), "json": b'{"domain": "art", "uid": "mine"}'})
        for n in range(12)
    ]
    samples.append(("q", {"jpg": scene(50, form="JPEG"), "json": json.dumps(RECORD).encode()}))
    make_tar(tmp_path / "raw.tar", samples)
    return pack(tmp_path, tmp_path / "out", PackConfig(max_samples=5))


def pack(source: Path, out: Path, config: PackConfig) -> Manifest:
    (file,) = list_files(WebDatasetSource(kind="webdataset", uri=str(source / "raw.tar")), 32)
    (chunk,) = read_chunks(file, frozenset())
    table = measure(chunk.table, file.uri, DecodeLimits(), {}, (), frozenset()).table
    assert table.column("status").to_pylist() == ["ok"] * table.num_rows
    table = table.append_column("_file", pa.array([0] * table.num_rows, pa.int32()))
    table = table.append_column("clip_x", pa.array([0.25] * table.num_rows, pa.float32()))
    planned = plan_shards(table, config, 0, 1)
    entries, commits = [], []
    for name, rows in shard_slices(planned, "t"):
        built = build(ShardJob(name, rows, {0: file}, ("clip_x",), str(out), str(out / "c" / name)))
        entries.append(built["shard"])
        commits.append(BuiltShard.model_validate(built))
    files = write_foreign(str(out), commits)
    totals = {
        "rows_in": table.num_rows, "kept": table.num_rows, "dropped": {}, "failed": 0, "samples": table.num_rows,
        "bytes": sum(entry["bytes"] for entry in entries), "domains": {"art": table.num_rows},
    }  # fmt: skip
    manifest = Manifest.model_validate(
        {"format": FORMAT, "name": "t", "code": {}, "recipe": {}, "shards": entries, "totals": totals, "columns": {},
         "fingerprints": {}, "files": files}
    )  # fmt: skip
    manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
    (out / "manifest.json").write_text(manifest.model_dump_json())
    return read_manifest(str(out))


def test_shards_are_plain_ustar_that_tarfile_and_webdataset_read(packed: Manifest, scene: Any) -> None:
    import webdataset

    seen: set[str] = set()
    for number, shard in enumerate(packed.shards):
        raw = Path(packed.tar_uri(number)).read_bytes()
        assert len(raw) == shard.bytes and len(raw) % 10_240 == 0
        with tarfile.open(packed.tar_uri(number)) as tar:
            members = tar.getmembers()
            assert tar.format != tarfile.PAX_FORMAT or not tar.pax_headers
        assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0o644, 0, 0, "", "")}
        assert all(raw[m.offset + 257 : m.offset + 265] == b"ustar\x0000" for m in members)
        keys = [member.name.split(".")[0] for member in members]
        assert [key for n, key in enumerate(keys) if n == 0 or keys[n - 1] != key] == list(dict.fromkeys(keys))
        index = np.frombuffer(Path(packed.tar_uri(number) + ".idx").read_bytes(), "<u8").tolist()
        firsts = [m.offset for n, m in enumerate(members) if n == 0 or keys[n - 1] != keys[n]]
        last = members[-1]
        assert index == [*firsts, last.offset_data + (last.size + 511) // 512 * 512]
        dataset = webdataset.WebDataset(packed.tar_uri(number), shardshuffle=False)
        samples = list(dataset)
        assert len(samples) == shard.samples
        seen |= {sample["__key__"] for sample in samples}
        for sample in samples:
            if "txt" in sample:
                assert sample["png"] == scene(int(sample["txt"].decode().split()[1]))
    assert len(seen) == packed.totals.samples


def test_a_sample_is_one_range_read_and_says_what_it_is(packed: Manifest, scene: Any) -> None:
    table = read_table(packed)
    assert table.num_rows == 13 and set(table.column("shard").to_pylist()) == {0, 1, 2}
    reader = pickle.loads(pickle.dumps(SampleReader(packed)))
    rows = table.to_pylist()
    pair, question = rows[0], next(row for row in rows if row["kind"] == "conversation")
    sample = reader.read(pair["shard"], pair["offset"], pair["size"])
    assert (sample.uid, sample.kind, sample.text) == (pair["key"], "pair", sample.conversation.messages[1].text)
    assert sample.image == scene(int(str(sample.text).split()[1]))
    assert sample.meta["sightloom"]["scores"] == {"clip_x": 0.25} and sample.meta["uid"] == pair["uid"].hex()
    assert sample.meta["source_uid"] == "mine"
    asked = reader.read(question["shard"], question["offset"], question["size"])
    assert asked.conversation.with_image().to_json() == {
        **RECORD,
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
            RECORD["messages"][1],
        ],
    }
    assert (question["image_ext"], question["answer_kind"], question["reasoning_chars"]) == ("jpg", "number", 3)
    with pytest.raises(UserMistake, match="no column 'nope'"):
        read_table(packed, ["nope"])
    with pytest.raises(SightloomError, match="ends inside"):
        reader.fetch(0, pair["offset"], 10_000_000)


def test_the_same_input_gives_the_same_bytes(packed: Manifest, tmp_path: Path) -> None:
    again = pack(tmp_path, tmp_path / "again", PackConfig(max_samples=5))
    assert again.digest == packed.digest
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in packed.shards]


def test_verify_finds_every_damage(packed: Manifest) -> None:
    assert verify(packed, True, NullProgress()).problems == ()
    beside = [Path(packed.folder) / file.name for file in packed.files]
    assert {path.name for path in beside} == {"sizes.json", ".info.json", "split.yaml", "dataset.yaml"}
    for path in (Path(packed.tar_uri(1)), Path(packed.tar_uri(0) + ".idx"), Path(packed.table_uri(2)), *beside):
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        assert len(verify(packed, False, NullProgress()).problems) == 1
        path.write_bytes(whole)
    Path(packed.tar_uri(1)).unlink()
    assert verify(packed, False, NullProgress()).problems[0].startswith("nothing at")


def test_a_deep_verification_finds_a_table_that_speaks_of_other_samples(packed: Manifest) -> None:
    """Checksums that were made for a wrong table hold; only the samples themselves contradict it."""
    import hashlib

    import pyarrow.parquet as pq

    path = Path(packed.table_uri(0))
    rows = pq.read_table(path)
    digests = pa.array(
        [None if value is None else "0" * 64 for value in rows.column("sha256").to_pylist()], pa.string()
    )
    pq.write_table(rows.set_column(rows.column_names.index("sha256"), "sha256", digests), path)
    first = packed.shards[0].model_copy(update={"table_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    forged = packed.model_copy(update={"shards": (first, *packed.shards[1:])})
    assert verify(forged, False, NullProgress()).problems == ()
    problems = verify(forged, True, NullProgress()).problems
    assert len(problems) == first.samples and "is not the one in the table" in problems[0]


def test_an_edited_manifest_and_another_format_are_refused(packed: Manifest, tmp_path: Path) -> None:
    path = Path(packed.uri)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "totals": {**content["totals"], "kept": 1}}))
    with pytest.raises(UserMistake, match="its own digest"):
        read_manifest(str(path))
    path.write_text('{"format": "other/1"}')
    with pytest.raises(UserMistake, match="not a shard manifest"):
        read_manifest(str(path))


def test_a_source_that_changed_after_scoring_stops_the_packing(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    make_tar(tmp_path / "raw.tar", [("a", {"png": scene(1), "txt": b"a cat"})])
    (file,) = list_files(WebDatasetSource(kind="webdataset", uri=str(tmp_path / "raw.tar")), 32)
    (chunk,) = read_chunks(file, frozenset())
    table = measure(chunk.table, file.uri, DecodeLimits(), {}, (), frozenset()).table
    table = table.append_column("_file", pa.array([0], pa.int32()))
    make_tar(tmp_path / "raw.tar", [("a", {"png": scene(2), "txt": b"a cat"})])
    planned = plan_shards(table, PackConfig(), 0, 0)
    with pytest.raises(SightloomError, match="source changed after scoring"):
        build(ShardJob("t-000000", planned, {0: file}, (), str(tmp_path / "out"), str(tmp_path / "out" / "c")))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_sample_larger_than_the_cap_is_a_mistake(packed: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"pack\.max_mb"):
        pack(tmp_path, tmp_path / "small", PackConfig(max_mb=0.021))


def test_held_out_is_a_property_of_the_picture_with_the_right_share() -> None:
    import hashlib

    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    mask = heldout_mask(pa.table({"sha256": [*hashes, None]}), 0.1)
    assert 0.08 < mask.mean() < 0.12 and not mask[-1]
    assert mask[:-1].tolist() == [is_heldout(value, 0.1) for value in hashes]
    assert not heldout_mask(pa.table({"sha256": hashes}), 0.0).any() and is_heldout(hashes[0], 1.0)


def test_equal_uids_get_keys_of_their_own(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    make_tar(tmp_path / "raw.tar", [(str(n), {"png": scene(1), "txt": b"a cat"}) for n in range(3)])
    manifest = pack(tmp_path, tmp_path / "out", PackConfig())
    keys = read_table(manifest).column("key").to_pylist()
    assert sorted(key[32:] for key in keys) == ["", "-1", "-2"]
    with tarfile.open(fileobj=io.BytesIO(Path(manifest.tar_uri(0)).read_bytes())) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names) == 9

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightloom.data.sources.chunks import list_files, read_chunks, read_positions
from sightloom.data.sources.config import FolderSource, ParquetSource, WebDatasetSource
from sightloom.errors import UserMistake


def rows_of(source: Any, chunk_rows: int = 32) -> list[dict[str, Any]]:
    return [
        row
        for file in list_files(source, chunk_rows)
        for chunk in read_chunks(file, frozenset())
        for row in chunk.table.to_pylist()
    ]


def tar_source(path: Path, **more: Any) -> WebDatasetSource:
    return WebDatasetSource(kind="webdataset", uri=str(path), **more)


def test_adjacent_members_are_one_record_with_its_byte_range(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    samples = [(f"{n:03d}", {"png": scene(n), "txt": b"a cat", "json": b'{"domain": "art"}'}) for n in range(5)]
    path = make_tar(tmp_path / "a.tar", samples)
    rows = rows_of(tar_source(path))
    assert [row["key"] for row in rows] == [f"{n:03d}" for n in range(5)]
    assert {row["status"] for row in rows} == {"ok"} and {row["domain"] for row in rows} == {"art"}
    data = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data[rows[2]["offset"] :][: rows[2]["size"]] + bytes(1024))) as inner:
        assert inner.getnames() == ["002.png", "002.txt", "002.json"]


def test_each_defect_of_a_tar_is_a_row_with_its_own_status(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    picture = scene(1)
    path = make_tar(
        tmp_path / "a.tar",
        [
            ("good", {"png": picture, "txt": b"a cat"}),
            ("no-image", {"txt": b"a cat"}),
            ("no-text", {"png": picture}),
            ("empty", {"png": picture, "txt": b"  "}),
            ("nul", {"png": picture, "txt": b"a\0b"}),
            ("latin", {"png": picture, "txt": "é".encode("latin-1")}),
            ("../up", {"png": picture, "txt": b"a cat"}),
            ("/abs", {"png": picture, "txt": b"a cat"}),
            ("pickled", {"png": picture, "txt": b"a cat", "pkl": b"cos\nsystem\n(S'true'\ntR."}),
            ("dup", {"png": picture, "txt": b"one"}),
            ("dup", {"png": picture, "txt": b"two"}),
            ("🙂", {"png": picture, "txt": "שלום 🙂".encode()}),
            ("k" * 200, {"png": picture, "txt": b"a cat"}),
            ("bad-json", {"png": picture, "txt": b"a cat", "json": b"{"}),
            ("wrong-record", {"png": picture, "json": b'{"messages": [], "kind": "conversation"}'}),
        ],
    )
    status = [row["status"] for row in rows_of(tar_source(path))]
    assert status == [
        "ok", "missing_image", "missing_text", "empty_text", "invalid_text", "invalid_text", "unsafe_member",
        "unsafe_member", "ok", "ok", "ok", "ok", "ok", "invalid_record", "invalid_record",
    ]  # fmt: skip


def test_what_packing_added_is_left_out_and_anothers_fields_of_those_names_are_kept(
    tmp_path: Path, scene: Any, make_tar: Any
) -> None:
    own = {"src": "a.tar", "source_key": "7", "scores": {}, "width": 4}
    metas = [{"uid": "theirs", "a": 1}, {"uid": "ours", "sightloom": own, "a": 1}, {"uid": "u", "sightloom": 3, "a": 1}]
    members = [
        (str(n), {"png": scene(n), "txt": b"x", "json": json.dumps(meta).encode()}) for n, meta in enumerate(metas)
    ]
    rows = rows_of(tar_source(make_tar(tmp_path / "a.tar", members)))
    assert [json.loads(row["meta"]) for row in rows] == [metas[0], {"a": 1}, metas[2]]


def test_links_and_devices_are_refused(tmp_path: Path, scene: Any) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("a.txt")
        text.size = 5
        tar.addfile(text, io.BytesIO(b"a cat"))
    assert [row["status"] for row in rows_of(tar_source(path))] == ["unsafe_member"]


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 3000, 5000, -10240])
def test_a_cut_tar_keeps_the_whole_records_and_says_that_it_is_cut(
    tmp_path: Path, scene: Any, make_tar: Any, keep: int
) -> None:
    samples = [(f"{n}", {"png": scene(n), "txt": b"a cat"}) for n in range(20)]
    data = make_tar(tmp_path / "a.tar", samples).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:keep])
    status = [row["status"] for row in rows_of(tar_source(tmp_path / "a.tar"))]
    assert status[-1] == "tar_truncated"
    assert set(status[:-1]) <= {"ok"}


def test_the_record_before_the_cut_one_is_whole_and_the_cut_one_is_named(
    tmp_path: Path, scene: Any, make_tar: Any
) -> None:
    path = make_tar(tmp_path / "a.tar", [(f"{n}", {"png": scene(n), "txt": b"a cat"}) for n in range(4)])
    (third,) = [row for row in rows_of(tar_source(path)) if row["key"] == "2"]
    path.write_bytes(path.read_bytes()[: third["offset"] + 700])
    rows = rows_of(tar_source(path))
    assert [(row["key"], row["status"]) for row in rows] == [("0", "ok"), ("1", "ok"), ("2", "tar_truncated")]


def test_a_broken_header_in_the_middle_is_not_the_end(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    samples = [(f"{n}", {"png": scene(n), "txt": b"a cat"}) for n in range(4)]
    path = make_tar(tmp_path / "a.tar", samples)
    rows = rows_of(tar_source(path))
    data = bytearray(path.read_bytes())
    data[rows[2]["offset"] : rows[2]["offset"] + 512] = b"x" * 512
    path.write_bytes(data)
    assert [row["status"] for row in rows_of(tar_source(path))] == ["ok", "tar_truncated"]


def test_compressed_tars_are_read_without_byte_ranges(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    import gzip

    plain = make_tar(tmp_path / "plain", [("a", {"png": scene(1), "txt": b"a cat"})])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (row,) = rows_of(tar_source(tmp_path / "a.tar.gz"))
    assert row["status"] == "ok" and row["offset"] is None


def test_parquet_takes_bytes_and_hugging_face_structs_and_keeps_other_columns(tmp_path: Path, scene: Any) -> None:
    images = [{"bytes": scene(n), "path": f"{n}.png"} for n in range(70)]
    table = pa.table({"image": images, "caption": [f"cat {n}" for n in range(70)], "stars": list(range(70))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    source = ParquetSource(kind="parquet", uri=str(tmp_path / "a.parquet"))
    chunks = [chunk for file in list_files(source, 32) for chunk in read_chunks(file, frozenset())]
    assert [(chunk.first, chunk.table.num_rows, chunk.last) for chunk in chunks] == [
        (0, 32, False),
        (32, 18, False),
        (50, 20, True),
    ]
    rows = [row for chunk in chunks for row in chunk.table.to_pylist()]
    assert [row["text"] for row in rows] == [f"cat {n}" for n in range(70)]
    assert json.loads(rows[69]["meta"]) == {"stars": 69}
    assert rows[10]["image"] == scene(10)


def test_a_list_of_one_picture_is_taken_and_of_several_refused_by_name(tmp_path: Path, scene: Any) -> None:
    images = [[{"bytes": scene(1)}], [{"bytes": scene(1)}, {"bytes": scene(2)}], []]
    pq.write_table(pa.table({"image": images, "text": ["a cat"] * 3}), tmp_path / "a.parquet")
    rows = rows_of(ParquetSource(kind="parquet", uri=str(tmp_path / "a.parquet")))
    assert [row["status"] for row in rows] == ["ok", "multi_image", "missing_image"]
    assert rows[0]["image"] == scene(1)


def test_a_dotted_name_beside_a_plain_one_is_something_else_and_two_dotted_ones_are_ambiguous(
    tmp_path: Path, scene: Any, make_tar: Any
) -> None:
    mask = {"mask.png": scene(9), "png": scene(1), "draft.txt": b"a dog", "txt": b"a cat", "old.txt": b"a bird"}
    path = make_tar(tmp_path / "a.tar", [("a", mask), ("b", {"1.png": scene(2), "2.png": scene(3), "txt": b"two"})])
    rows = rows_of(tar_source(path))
    assert [(row["key"], row["status"], row["text"]) for row in rows] == [
        ("a", "ok", "a cat"),
        ("b", "multi_image", "two"),
    ]
    assert rows[0]["image"] == scene(1) and "1.png, 2.png" in rows[1]["detail"]


def test_records_of_a_parquet_column_are_checked(tmp_path: Path, scene: Any) -> None:
    good = {
        "id": "1",
        "kind": "conversation",
        "task": "count",
        "domain": "art",
        "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}],
        "answer": {"kind": "number", "value": 3},
    }
    bad = {**good, "messages": [good["messages"][1]]}
    records = [json.dumps(good), json.dumps(bad), "{"]
    table = pa.table({"image": [scene(1)] * 3, "record": records})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = rows_of(ParquetSource(kind="parquet", uri=str(tmp_path / "a.parquet")))
    assert [row["status"] for row in rows] == ["ok", "invalid_record", "invalid_record"]
    assert rows[1]["detail"].startswith("messages.0.role: expected user")
    assert (rows[0]["kind"], rows[0]["turns"], rows[0]["answer_kind"], rows[0]["text"]) == (
        "conversation", 1, "number", "How many?",
    )  # fmt: skip
    assert json.loads(rows[0]["meta"])["messages"][0]["content"][0] == {"type": "image"}


def test_a_folder_of_img2dataset_is_read_with_captions_keys_and_fields(
    tmp_path: Path, scene: Any, make_tar: Any
) -> None:
    def meta(number: int) -> bytes:
        facts = {"error_message": None, "width": 48, "height": 48, "exif": "{}", "similarity": float("nan")}
        own = {
            "caption": f"cat {number}",
            "url": f"http://a/{number}",
            "key": f"00000{number:04d}",
            "status": "success",
        }
        return json.dumps(own | facts).encode()

    both = [(f"00000{n:04d}", {"jpg": scene(n), "json": meta(n), "txt": f"cat {n}".encode()}) for n in range(3)]
    no_txt = [(f"00001{n:04d}", {"jpg": scene(n), "json": meta(n)}) for n in range(3, 5)]
    make_tar(tmp_path / "00000.tar", both)
    make_tar(tmp_path / "00001.tar", no_txt)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    rows = rows_of(tar_source(tmp_path))
    assert [(row["status"], row["text"]) for row in rows] == [("ok", f"cat {n}") for n in range(5)]
    assert [row["key"] for row in rows] == [key for key, _ in (*both, *no_txt)]
    kept = json.loads(rows[4]["meta"])
    assert (kept["url"], kept["status"], kept["similarity"]) == ("http://a/4", "success", None)


def test_questions_in_columns_become_dialogues(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    meta = json.dumps({"answer": "B", "options": ["A", "B"], "domain": "science"}).encode()
    path = make_tar(tmp_path / "a.tar", [("q", {"png": scene(1), "txt": b"Which?", "json": meta})])
    fields = {"question": "txt", "answer": "json.answer", "options": "json.options"}
    (row,) = rows_of(tar_source(path, fields=fields))
    record = json.loads(row["meta"])
    assert row["status"] == "ok" and row["kind"] == "conversation" and row["domain"] == "science"
    assert record["answer"] == {"kind": "choice", "options": ["A", "B"], "value": "B"}
    assert record["messages"][1] == {"role": "assistant", "content": "B"}


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_a_folder_is_read_by_its_captions(tmp_path: Path, scene: Any, form: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(scene(number))
    rows = [{"file_name": f"{number}.png", "text": f"cat {number}", "domain": "art"} for number in range(3)]
    if form == "txt":
        for row in rows:
            (tmp_path / row["file_name"]).with_suffix(".txt").write_text(row["text"])
    else:
        rows += [
            {"file_name": "gone.png", "text": "a cat", "domain": "art"},
            {"file_name": "../up.png", "text": "a cat", "domain": "art"},
        ]
        with open(tmp_path / f"captions.{form}", "w", newline="") as file:
            if form == "csv":
                writer = csv.DictWriter(file, ["file_name", "text", "domain"])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.write("\n".join([*map(json.dumps, rows), "{"]))
    found = rows_of(FolderSource(kind="folder", uri=str(tmp_path)))
    assert [(row["status"], row["text"]) for row in found[:3]] == [("ok", f"cat {n}") for n in range(3)]
    expected = {"txt": [], "csv": ["missing_image", "unsafe_member"],
                "jsonl": ["missing_image", "unsafe_member", "invalid_record"]}  # fmt: skip
    assert [row["status"] for row in found[3:]] == expected[form]


def test_chosen_records_are_read_again_equal(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    samples = [(f"{n:03d}", {"png": scene(n), "txt": f"cat {n}".encode()}) for n in range(40)]
    make_tar(tmp_path / "a.tar", samples)
    (file,) = list_files(tar_source(tmp_path / "a.tar"), 32)
    rows = [row for chunk in read_chunks(file, frozenset()) for row in chunk.table.to_pylist()]
    chosen = [rows[n] for n in (35, 3, 20)]
    again = list(read_positions(file, [(row["pos"], row["offset"], row["size"]) for row in chosen]))
    assert [(r.pos, r.key, r.image, r.text) for r in again] == [
        (row["pos"], row["key"], row["image"], row["text"]) for row in sorted(chosen, key=lambda row: row["pos"])
    ]


def test_committed_chunks_are_left_out(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    make_tar(tmp_path / "a.tar", [(f"{n}", {"png": scene(1), "txt": b"a cat"}) for n in range(70)])
    (file,) = list_files(tar_source(tmp_path / "a.tar"), 32)
    chunks = list(read_chunks(file, frozenset({0, 1})))
    assert [(chunk.index, chunk.first, chunk.table.num_rows, chunk.last) for chunk in chunks] == [(2, 64, 6, True)]


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no files at"):
        list_files(tar_source(tmp_path / "none" / "*.tar"), 32)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserMistake, match=r"no \.tar files"):
        list_files(tar_source(tmp_path), 32)
    with pytest.raises(UserMistake, match="neither captions"):
        list_files(FolderSource(kind="folder", uri=str(tmp_path)), 32)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserMistake, match="no column 'picture'") as caught:
        rows_of(ParquetSource(kind="parquet", uri=str(tmp_path / "a.parquet"), fields={"image": "picture"}))
    assert "have: a" in caught.value.hint

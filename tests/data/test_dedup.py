import functools
import hashlib
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sightloom.data import segments
from sightloom.data.dedup import exact, find, perceptual
from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.find import columns_needed, find_among, find_duplicates
from sightloom.data.dedup.perceptual import Bucket, Hashes, near_pairs
from sightloom.data.ledger import Group, commit, committed
from sightloom.data.measure import measure
from sightloom.data.segments import next_compactions, publish, write_segment
from sightloom.data.select.columns import Scored, open_scores
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import SourceFile, to_table
from sightloom.data.sources.records import RawRecord
from sightloom.errors import UserMistake

from ..raw_pairs import jpeg, smooth


def table_of(records: list[RawRecord]) -> pa.Table:
    return measure(to_table(records), "a.tar", DecodeLimits(), {}, (), frozenset()).table


def test_each_method_finds_its_copies_and_the_preferred_one_stays() -> None:
    one, two = smooth(1), smooth(2)
    records = [
        RawRecord(0, "a", image=one, text="a cat"),
        RawRecord(1, "b", image=one, text="a cat"),
        RawRecord(2, "c", image=one, text="another text"),
        RawRecord(3, "d", image=jpeg(one, 0.75, 60), text="a cat"),
        RawRecord(4, "e", image=two, text="a cat"),
        RawRecord(5, "f", image=two[:300], text="a cat"),
    ]
    table = table_of(records).append_column("score", pa.array([0.1, 0.1, 0.9, 0.5, 0.2, None]))
    found = find_duplicates(table, DedupConfig(prefer="score", perceptual={"bits": 4}))
    lost = dict(zip(found.rows.tolist(), zip(found.reasons, found.winners.tolist(), strict=True), strict=True))
    assert lost[3] == ("dup_near", 2)
    assert sorted(lost) == [0, 1, 3]
    assert {lost[0][0], lost[1][0]} == {"dup_pair", "dup_image"}
    assert find_duplicates(table, DedupConfig(exact=False)).rows.tolist() == []


def test_questions_may_share_a_picture_and_only_equal_records_are_copies() -> None:
    picture = smooth(3)
    records = [
        RawRecord(n, str(n), kind="conversation", image=picture, text="How many?", meta={"id": key})
        for n, key in enumerate(["x", "y", "x"])
    ]
    records.append(RawRecord(3, "pair", image=picture, text="a caption"))
    found = find_duplicates(table_of(records), DedupConfig(perceptual={"bits": 4}))
    assert (found.rows.tolist(), found.reasons) == ([2], ("dup_pair",))


def test_the_order_of_rows_does_not_matter() -> None:
    pictures = [smooth(n) for n in range(6)]
    pictures += [jpeg(picture, 1.0, quality) for picture in pictures for quality in (90, 60)]
    records = [RawRecord(n, str(n), image=picture, text="a cat") for n, picture in enumerate(pictures)]
    table = table_of(records)
    draw = np.random.default_rng(0)
    outcomes = set()
    for _ in range(4):
        order = draw.permutation(table.num_rows)
        found = find_duplicates(table.take(pa.array(order)), DedupConfig(perceptual={"bits": 4}))
        outcomes.add(tuple(sorted(int(table.column("src_pos")[int(order[row])].as_py()) for row in found.rows)))
    assert len(outcomes) == 1
    assert len(outcomes.pop()) >= 10


def test_different_pictures_are_not_near() -> None:
    records = [RawRecord(n, str(n), image=smooth(n), text="a cat") for n in range(60)]
    assert find_duplicates(table_of(records), DedupConfig(perceptual={"bits": 4})).reasons == ()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(0, 4))
def test_the_sieve_loses_no_pair_that_a_full_comparison_finds(seed: int, rows: int, bits: int) -> None:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 2**63, 4, dtype=np.uint64)[draw.integers(0, 4, rows)]
    for row in range(rows):
        for bit in draw.integers(0, 64, draw.integers(0, 4)):
            coarse[row] ^= np.uint64(1) << np.uint64(bit)
    hashes = Hashes(coarse, np.zeros((rows, 4), np.uint64), np.zeros((rows, 48), np.int16))
    better, worse = near_pairs(hashes, bits)
    expected = {
        (a, b) for a in range(rows) for b in range(a + 1, rows) if bin(int(coarse[a] ^ coarse[b])).count("1") <= bits
    }
    assert set(zip(better.tolist(), worse.tolist(), strict=True)) == expected


def test_a_preference_that_is_no_column_is_named() -> None:
    with pytest.raises(UserMistake, match="clip_x"):
        find_duplicates(table_of([RawRecord(0, "a", text="a")]), DedupConfig(prefer="clip_x"))


def test_uids_are_of_the_content() -> None:
    picture = smooth(1)
    table = table_of([RawRecord(0, "a", image=picture, text="a cat"), RawRecord(1, "b", image=picture, text="a dog")])
    uids: list[Any] = table.column("uid").to_pylist()
    assert uids[0] != uids[1] and uids[0] == hashlib.sha256(picture + b"\0a cat").digest()[:16]


def mirrored(data: bytes) -> bytes:
    sink = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(data)).convert("RGB")).save(sink, "JPEG", quality=80)
    return sink.getvalue()


def test_mirrored_copies_go_where_that_is_asked_for_and_only_there() -> None:
    pictures = [smooth(n) for n in range(20)]
    turned = [mirrored(picture) for picture in pictures[:10]]
    records = [RawRecord(n, str(n), image=picture, text="a cat") for n, picture in enumerate(pictures + turned)]
    whole = measure(to_table(records), "a.tar", DecodeLimits(), {}, (), frozenset(), mirror=True).table
    assert "phash_mirror" not in table_of(records).column_names
    asked = DedupConfig(perceptual={"mirror": True})
    table = whole.append_column("score", pa.array([0.5] * 20 + [0.9] * 5 + [0.1] * 5))
    found = find_duplicates(table, asked.model_copy(update={"prefer": "score"}))
    lost = dict(zip(found.rows.tolist(), found.winners.tolist(), strict=True))
    assert lost == {**{n: n + 20 for n in range(5)}, **{n + 20: n for n in range(5, 10)}}  # the better one stays
    assert set(found.reasons) == {"dup_near"}
    assert find_duplicates(table, DedupConfig(perceptual={"bits": 4})).reasons == ()
    twice = measure(to_table([records[0], RawRecord(1, "x", image=mirrored(turned[0]), text="a cat")]), "a.tar",
                    DecodeLimits(), {}, (), frozenset(), mirror=True).table  # fmt: skip
    assert find_duplicates(twice, asked).reasons == ("dup_near",)


def real_pictures(shared_data: Path, name: str, rows: int) -> list[bytes]:
    table = pq.ParquetFile(shared_data / name).read_row_group(0, ["image"]).slice(0, rows)
    return [value["bytes"] if isinstance(value, dict) else value for value in table.column("image").to_pylist()]


@pytest.mark.parametrize(("name", "rows", "recall"), [("receipts.parquet", 40, 1.0), ("nlvr-0.parquet", 60, 0.85)])
def test_real_receipts_and_scenes_are_not_joined_and_their_copies_are_found(
    shared_data: Path, name: str, rows: int, recall: float
) -> None:
    pictures = list(dict.fromkeys(real_pictures(shared_data, name, rows)))
    copies = [jpeg(picture, 0.75, 60) for picture in pictures[: rows // 2]]
    records = [RawRecord(n, str(n), image=picture, text="x") for n, picture in enumerate(pictures + copies)]
    found = find_duplicates(table_of(records), DedupConfig(perceptual={"bits": 4}))
    joined = {tuple(sorted(pair)) for pair in zip(found.rows.tolist(), found.winners.tolist(), strict=True)}
    wanted = {(n, n + len(pictures)) for n in range(len(copies))}
    assert joined <= wanted and len(joined) >= recall * len(wanted)


def test_buckets_find_what_the_whole_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    table, config = copies_of_copies(), DedupConfig(prefer="score", perceptual={"bits": 4, "mirror": True})
    whole, seen = find_duplicates(table, config), list[int]()

    def run(function: Callable[[Bucket], Any], works: Iterable[Bucket]) -> Iterator[tuple[Bucket, Any]]:
        for work in reversed(list(works)):  # tasks end in any order
            seen.append(len(work.rows))
            yield work, function(pickle.loads(pickle.dumps(work)))

    monkeypatch.setattr(perceptual, "BUCKET_ROWS", 5)
    uids = table.column("uid").combine_chunks()
    assert find_duplicates(table, config, run=run).table(uids).equals(whole.table(uids)) and not seen
    monkeypatch.setattr(find, "TASKS_ABOVE", 10)
    assert find_duplicates(table, config, run=run).table(uids).equals(whole.table(uids))
    assert len(seen) == 15 * 8 and sum(seen) == 15 * 2 * table.num_rows


def scored_of(out: Path, table: pa.Table, rows: int) -> Scored:
    """The rows as they lie in segments: a file of ten, and segments of at most `rows`."""
    base = Group.make(str(out), "base", {})
    files = []
    for number, start in enumerate(range(0, table.num_rows, 10)):
        files.append(SourceFile("parquet", f"/raw/{number:03d}", 1, "v", (), 10, f"{number * 7919:016x}"))
        part = table.slice(start, 10)
        commit(base, files[-1].chunk_id(0), True, part, {"status": {"ok": part.num_rows}, "src": {}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_ROWS", rows)
        for work in next_compactions([base], [committed(base)], [file.file_id for file in files], 0):
            publish(base, write_segment(work))
    return open_scores(files, [base], [committed(base)])


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_exact_copies_found_in_buckets_are_those_found_in_one_process(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    """With ties, nulls, NaN, sources' own uids, dialogues and unusable rows; near copies among what is left, too."""
    size = data.draw(st.integers(1, 90))
    draw = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    hashed = copies_of_copies()
    taken = hashed.take(pa.array(draw.integers(0, hashed.num_rows, size)))
    kinds, states = (
        draw.choice(["pair", "conversation"], size, p=[0.8, 0.2]),
        draw.choice(["ok", "bad"], size, p=[0.9, 0.1]),
    )
    shas = [None if n == 0 else hashlib.sha256(bytes([n])).hexdigest() for n in draw.integers(0, 12, size)]
    scores = [[None, float("nan"), 0.5, 0.7, -1.0][n] for n in draw.integers(0, 5, size)]
    columns = {
        "uid": pa.array([bytes([n]) * 16 for n in draw.integers(0, 40, size)], pa.binary(16)),
        "kind": pa.array(kinds.tolist()),
        "status": pa.array(states.tolist()),
        "sha256": pa.array(shas, pa.string()),
        "src": pa.array([f"/raw/{n:03d}" for n in np.sort(draw.integers(0, 3, size))]),
        "src_pos": pa.array(draw.integers(0, 9, size)),
        "width": pa.array(draw.choice([10, 20], size).tolist(), pa.int32()),
        "score": pa.array(scores, pa.float32()),
    }
    table = taken.drop_columns(["score"]).select([n for n in taken.column_names if n not in columns])
    for name, values in columns.items():
        table = table.append_column(name, values)
    config = DedupConfig(prefer=data.draw(st.sampled_from([None, "score"])),
                         perceptual=data.draw(st.sampled_from([None, {"bits": 4}])))  # fmt: skip
    out = tmp_path_factory.mktemp("scored")
    scored = scored_of(out, table, 25)
    whole = find_duplicates(scored.read(columns_needed(config)), config)

    def run(function: Callable[[Any], Any], works: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for work in reversed(list(works)):  # tasks end in any order
            yield work, function(pickle.loads(pickle.dumps(work)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "TASKS_ABOVE", 0)
        patch.setattr(exact, "SLICE_ROWS", 30)
        patch.setattr(exact, "BUCKET_ROWS", 7)
        found = find_among(scored, config, {}, (), run, str(out / "between"))
    uids = table.column("uid").combine_chunks()
    assert found.table(uids).equals(whole.table(uids))
    assert found.winners.tolist() == whole.winners.tolist()
    assert not list(out.glob("between/*"))


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_shuffled_rows_give_the_same_uids(random: Any) -> None:
    """Of copies of copies at many qualities the same ones stay, whatever the order; the highest score is among them."""
    table = copies_of_copies()
    order = list(range(table.num_rows))
    random.shuffle(order)
    config = DedupConfig(prefer="score", perceptual={"bits": 4, "mirror": True})
    outcomes = []
    for part in (table, table.take(pa.array(order))):
        lost = set(find_duplicates(part, config).rows.tolist())
        outcomes.append(sorted(uid for row, uid in enumerate(part.column("uid").to_pylist()) if row not in lost))
    assert outcomes[0] == outcomes[1] and 4 <= len(outcomes[0]) < 10
    best = table.column("uid")[int(np.argmax(table.column("score").to_numpy()))].as_py()
    assert best in outcomes[0]


@functools.cache
def copies_of_copies() -> pa.Table:
    pictures = [smooth(n) for n in range(4)]
    pictures += [jpeg(one, 1.0, quality) for one in pictures for quality in (90, 70, 50)]
    pictures += [mirrored(one) for one in pictures[:4]]
    records = [RawRecord(n, str(n), image=one, text="a cat") for n, one in enumerate(pictures)]
    table = measure(to_table(records), "a.tar", DecodeLimits(), {}, (), frozenset(), mirror=True).table
    return table.append_column("score", pa.array(np.random.default_rng(0).normal(size=table.num_rows)))

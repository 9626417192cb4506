import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sightloom.data.artifacts import read_duplicates, write_duplicates
from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.decontaminate import plain
from sightloom.data.dedup.duplicates import OUTSIDE, Duplicates
from sightloom.data.dedup.find import columns_needed, find_duplicates
from sightloom.data.dedup.perceptual import Hashes, first_near
from sightloom.data.dedup.references import Reference, resolve_references
from sightloom.data.embeddings import Embeddings, Part
from sightloom.data.ledger import Group, commit, commit_uri, committed
from sightloom.data.measure import VERSION, measure
from sightloom.data.segments import next_compactions, publish, write_segment
from sightloom.data.signals.config import ClipScorer, DecodeLimits
from sightloom.data.signals.crops import CropSpec
from sightloom.data.signals.scorers import ClipSpec
from sightloom.data.sources.chunks import to_table
from sightloom.data.sources.records import RawRecord
from sightloom.errors import UserMistake

from ..raw_pairs import jpeg, smooth

FILE = "0123456789abcdef"
DIM = 4


def table_of(records: list[RawRecord]) -> pa.Table:
    return measure(to_table(records), "a.tar", DecodeLimits(), {}, (), frozenset()).table


def question(pos: int, text: str, image: bytes | None = None) -> RawRecord:
    return RawRecord(pos, str(pos), kind="conversation", text=text, image=image, meta={"id": str(pos)})


def scorer(name: str = "b32", weights: str = "w", kinds: tuple[Any, ...] = ("pair",), stored: bool = True) -> ClipSpec:
    one = ClipScorer(name=name, model="ViT-B-32", embeddings=stored, kinds=kinds)
    return ClipSpec(one, weights, CropSpec(32, "shortest", "bicubic"), (0.5,) * 3, (0.5,) * 3, DIM)


def compact(groups: list[Group]) -> None:
    states = [committed(group) for group in groups]
    while works := next_compactions(groups, states, [FILE], 0):
        for work in works:
            publish(work.group, write_segment(work))


def evaluation_set(
    out: Path, records: list[RawRecord], spec: ClipSpec | None = None, vectors: Any = None, version: int = VERSION
) -> str:
    """Write what `score` leaves of an evaluation set, in chunks of two rows."""
    config: dict[str, Any] = {"version": version, "decode": {}, "keep_fields": {}}
    groups = [Group.make(str(out), "base", config)]
    groups[0].describe(config, {})
    if spec is not None:
        groups.append(Group.make(str(out), spec.column, spec.identity(), "-emb"))
        groups[1].describe(spec.identity(), {spec.column: "float"})
    table = table_of(records)
    for start in range(0, len(records), 2):
        chunk, last, part = f"{FILE}-{start // 2:05d}", start + 2 >= len(records), table.slice(start, 2)
        commit(groups[0], chunk, last, part, {"status": {"ok": part.num_rows}, "src": {}})
        if spec is not None:
            scores = pa.table({spec.column: [0.5] * part.num_rows})
            own = np.asarray(vectors, np.float16)[start : start + 2]
            commit(groups[1], chunk, last, scores, {"scored": part.num_rows}, own)
    compact(groups)
    return str(out)


def found_in(
    table: pa.Table, config: DedupConfig, specs: tuple[ClipSpec, ...] = (), stored: dict[str, Embeddings] | None = None
) -> tuple[Duplicates, dict[int, tuple[str, str]]]:
    """Deduplicate as `curate` does; returns the losers, and row -> (reason, method)."""
    references = resolve_references(config, specs)
    found = find_duplicates(table.select(columns_needed(config, references)), config, stored or {}, references)
    rows = found.table(table.column("uid").combine_chunks()).to_pylist()
    return found, {row["row"]: (row["reason"], row["method"]) for row in rows}


def test_planted_evaluation_pictures_and_questions_go_and_all_else_stays(tmp_path: Path) -> None:
    held = [
        RawRecord(0, "a", image=smooth(1), text="a test picture"),
        RawRecord(1, "b", image=smooth(2), text="another"),
        question(2, "How many legs has a horse?", smooth(3)),
        question(3, "What is this?", smooth(4)),
        question(4, "What is this?", smooth(5)),
        RawRecord(5, "c", image=smooth(6), text=" ", status="empty_text"),
    ]
    out = evaluation_set(tmp_path / "eval", held)
    records = [
        RawRecord(0, "0", image=smooth(1), text="found elsewhere, other caption"),
        RawRecord(1, "1", image=jpeg(smooth(2), 0.75, 60), text="smaller, compressed"),
        question(2, "how many  LEGS has a horse", smooth(50)),
        question(3, "What is this?", smooth(51)),
        question(4, "Which year?", smooth(5)),
        RawRecord(5, "5", image=smooth(6), text="of a row that could not be used"),
        RawRecord(6, "6", image=smooth(52), text="How many legs has a horse?"),
        RawRecord(7, "7", image=smooth(53), text="a cat"),
        RawRecord(8, "8", image=smooth(53), text="a cat"),
        RawRecord(9, "9", image=smooth(1)[:90], text="a broken one"),
    ]
    table = table_of(records)
    config = DedupConfig(decontaminate=[{"name": "bench", "scores": out}])
    found, lost = found_in(table, config)
    overlap = "eval_overlap_bench"
    assert lost == {
        0: (overlap, "exact"), 1: (overlap, "perceptual"), 2: (overlap, "question"), 4: (overlap, "exact"),
        5: (overlap, "exact"), 8: ("dup_pair", "exact"),
    }  # fmt: skip
    assert found.winners[found.rows == 0] == OUTSIDE
    eval_uids = table_of(held).column("uid").to_pylist()
    of = dict(
        zip(found.rows.tolist(), found.table(table.column("uid").combine_chunks())["of"].to_pylist(), strict=True)
    )
    assert [of[row] for row in (0, 1, 2, 4, 5)] == [eval_uids[n] for n in (0, 1, 2, 4, 5)]
    again, same = found_in(table, DedupConfig(decontaminate=[{"name": "bench", "scores": out + "/scores"}]))
    assert (same, again.outside) == (lost, found.outside)


def test_mirrored_evaluation_pictures_go_where_mirrors_are_asked_for(tmp_path: Path) -> None:
    out = evaluation_set(tmp_path / "eval", [RawRecord(n, str(n), image=smooth(n), text="x") for n in range(2)])
    sink = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(smooth(1)))).save(sink, "JPEG", quality=70)
    records = [RawRecord(0, "0", image=sink.getvalue(), text="y"), RawRecord(1, "1", image=smooth(9), text="y")]
    table = measure(to_table(records), "a.tar", DecodeLimits(), {}, (), frozenset(), mirror=True).table
    names = [{"name": "bench", "scores": out}]
    assert found_in(table, DedupConfig(decontaminate=names))[1] == {}
    asked = DedupConfig(perceptual={"mirror": True}, decontaminate=names)
    assert found_in(table, asked)[1] == {0: ("eval_overlap_bench", "perceptual")}


def test_an_embedding_by_the_same_weights_tells_and_one_by_others_is_refused(tmp_path: Path) -> None:
    held = [RawRecord(n, str(n), image=smooth(n), text="x") for n in range(3)]
    vectors = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    out = evaluation_set(tmp_path / "eval", held, scorer("own_name", kinds=("conversation",)), vectors)
    table = table_of([RawRecord(n, str(n), image=smooth(100 + n), text="y") for n in range(4)])
    np.save(
        tmp_path / "e.npy", np.array([[0.97, 0.2431, 0, 0], [0.9, 0.4359, 0, 0], [0, 0, 1, 0], [0] * 4], np.float16)
    )
    stored = {"b32": Embeddings(4, (Part(str(tmp_path / "e.npy"), 0, 4),))}
    config = DedupConfig(decontaminate=[{"name": "bench", "scores": out}])
    assert found_in(table, config, (scorer(),), stored)[1] == {0: ("eval_overlap_bench", "semantic")}
    wide = DedupConfig(semantic={"scorer": "b32", "cosine": 0.89}, decontaminate=[{"name": "bench", "scores": out}])
    found, lost = found_in(table, wide, (scorer(),), stored)
    assert lost == {0: ("eval_overlap_bench", "semantic"), 1: ("eval_overlap_bench", "semantic")}
    assert found.outside[0][1] == table_of(held).column("uid")[0].as_py()
    assert found_in(table, config, (scorer(stored=False),), {})[1] == {}  # without embeddings here the hashes remain
    with pytest.raises(UserMistake, match="evaluation set 'bench' has no embeddings by the weights of 'b32'") as caught:
        resolve_references(config, (scorer(weights="other"),))
    assert "embeddings: true" in caught.value.hint
    hashes_only = evaluation_set(tmp_path / "plain", held)
    resolve_references(DedupConfig(decontaminate=[{"name": "bench", "scores": hashes_only}]), (scorer(),))
    with pytest.raises(UserMistake, match=r"has no embeddings by the weights of 'b32' .embeddings there: none"):
        resolve_references(wide.model_copy(update={"decontaminate": DedupConfig(
            decontaminate=[{"name": "bench", "scores": hashes_only}]).decontaminate}), (scorer(),))  # fmt: skip


def test_an_evaluation_set_that_is_missing_unfinished_or_of_another_version_is_refused(tmp_path: Path) -> None:
    def resolve(folder: Path) -> tuple[Reference, ...]:
        return resolve_references(DedupConfig(decontaminate=[{"name": "bench", "scores": str(folder)}]), ())

    held = [RawRecord(n, str(n), image=smooth(n), text="x") for n in range(5)]
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        with pytest.raises(UserMistake, match=f"evaluation set 'bench': no scores at '.*{folder}'"):
            resolve(tmp_path / folder)
    with pytest.raises(UserMistake, match="another version"):
        resolve(Path(evaluation_set(tmp_path / "old", held, version=VERSION + 1)))
    whole = Path(evaluation_set(tmp_path / "whole", held))
    (reference,) = resolve(whole)
    assert reference.rows.num_rows == 5
    longer = Path(evaluation_set(tmp_path / "longer", held[:3]))
    assert resolve(longer)[0].content != reference.content  # what it holds names the result
    (base,) = reference.bases
    Path(commit_uri(base, f"{FILE}-00002", True)).unlink()
    with pytest.raises(UserMistake, match="not wholly scored"):
        resolve(whole)
    with pytest.raises(ValueError, match="same name"):
        DedupConfig(decontaminate=[{"name": "bench", "scores": "a"}, {"name": "bench", "scores": "b"}])


def test_what_was_found_outside_is_read_as_it_was_written(tmp_path: Path) -> None:
    class Rows:
        num_rows = 4

        def read(self, names: list[str]) -> pa.Table:
            return pa.table({"uid": pa.array([bytes([n]) * 16 for n in range(4)], pa.binary(16))}).select(names)

    outside = {1: ("semantic", b"e" * 16), 3: ("exact", b"f" * 16)}
    reasons = ("eval_overlap_bench", "dup_near", "eval_overlap_bench")
    given = Duplicates(np.array([1, 2, 3]), reasons, np.array([OUTSIDE, 0, OUTSIDE]), outside)
    write_duplicates(str(tmp_path), "f", Rows(), given)  # type: ignore[arg-type]
    found = read_duplicates(str(tmp_path), "f")
    assert found is not None and (found.reasons, found.outside) == (reasons, outside)
    assert (found.rows.tolist(), found.winners.tolist()) == ([1, 2, 3], [OUTSIDE, 0, OUTSIDE])


def test_questions_are_compared_without_case_punctuation_and_blanks() -> None:
    texts = pa.array(["  What's\n THIS?! ", "Ça va…", "?!", None, "क्या"])
    assert plain(texts).to_pylist() == ["what s this", "ça va", None, None, "क्या"]


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 12), st.integers(0, 4))
def test_the_sieve_across_two_sets_loses_no_pair(seed: int, rows: int, others: int, bits: int) -> None:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 2**63, 4, dtype=np.uint64)[draw.integers(0, 4, rows + others)]
    for row in range(rows + others):
        for bit in draw.integers(0, 64, draw.integers(0, 4)):
            coarse[row] ^= np.uint64(1) << np.uint64(bit)

    def hashes(part: np.ndarray[Any, Any]) -> Hashes:
        return Hashes(part, np.zeros((len(part), 4), np.uint64), np.zeros((len(part), 48), np.int16))

    own, theirs = coarse[:rows], coarse[rows:]
    found = first_near(hashes(own), hashes(theirs), bits)
    expected = {}
    for a in range(rows):
        near = [b for b in range(others) if bin(int(own[a] ^ theirs[b])).count("1") <= bits]
        if near:
            expected[a] = near[0]
    assert dict(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected

"""The written corpus: raw forms that others read, defects as planned, whole or not at all."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightloom.demo.corpus import CorpusInfo, read_info, write_corpus
from sightloom.demo.corpus.defects import SHARES, plan
from sightloom.demo.corpus.draws import keyed
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress
from sightloom.records import Conversation

NUMBERS = {"seed": 5, "num_pairs": 1200, "num_pictures": 60, "num_trusted": 40}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusInfo:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "out", **NUMBERS, progress=NullProgress())


def _pairs(folder: Path, pattern: str) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {})[extension] = data.read()
    return found


def _truth(corpus: CorpusInfo) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(corpus.truth).to_pylist()
    return rows


def _image(members: dict[str, bytes]) -> bytes:
    return members.get("png") or members["jpg"]


def test_defects_are_what_the_truth_says(corpus: CorpusInfo) -> None:
    pairs = _pairs(Path(corpus.folder), "raw/pairs-*.tar")
    truth = {row["key"]: row["defect"] for row in _truth(corpus) if row["file"].startswith("pairs-")}
    assert pairs.keys() == truth.keys()
    images = Counter(_image(members) for members in pairs.values())
    for key, defect in truth.items():
        image, caption = _image(pairs[key]), pairs[key]["txt"].decode()
        if defect == "truncated":
            with pytest.raises(OSError):
                Image.open(io.BytesIO(image)).load()
            continue
        size = Image.open(io.BytesIO(image)).convert("RGB").size
        assert size == ((1, 1) if defect == "tiny" else (64, 64))
        assert (caption == "") == (defect == "empty")
        if defect == "duplicate":
            assert images[image] > 1
        if defect == "boilerplate":
            assert len(caption.split()) < 6


def test_shares_of_defects_are_as_planned(corpus: CorpusInfo) -> None:
    assert sum(corpus.defects.values()) == NUMBERS["num_pairs"]
    for defect, share in SHARES.items():
        assert corpus.defects[defect] / NUMBERS["num_pairs"] == pytest.approx(share, abs=0.012)


def test_a_mismatched_caption_is_never_by_chance_the_right_one() -> None:
    captions = ["same"] * 50 + [f"other {number}" for number in range(50)]
    for seed in range(20):
        for place, fate in enumerate(plan(keyed(seed, 9, 0), captions)):
            assert (fate.defect == "mismatch") <= (captions[fate.source] != captions[place])


def test_reencoded_copies_look_like_their_source_but_differ_in_bytes(corpus: CorpusInfo) -> None:
    pairs = _pairs(Path(corpus.folder), "raw/pairs-*.tar")
    sound = {row["key"] for row in _truth(corpus) if row["defect"] == "ok" and row["file"].startswith("pairs-")}
    copies = [row["key"] for row in _truth(corpus) if row["defect"] == "reencoded"]

    def pixels(key: str) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(io.BytesIO(_image(pairs[key]))).convert("RGB"), dtype=float)

    by_caption: dict[bytes, list[str]] = {}
    for key in sound:
        by_caption.setdefault(pairs[key]["txt"], []).append(key)
    for copy in copies:
        sources = by_caption[pairs[copy]["txt"]]
        assert (
            min(np.abs(pixels(copy) - pixels(source)).mean() for source in sources) < 15
        )  # other pictures: 40 and more
        assert all(_image(pairs[copy]) != _image(pairs[source]) for source in sources)


def test_questions_are_records_over_readable_pictures(corpus: CorpusInfo) -> None:
    truth = {(row["key"], row["defect"]) for row in _truth(corpus) if row["file"].startswith("questions-")}
    rows = [
        row
        for path in sorted(Path(corpus.folder).glob("raw/questions-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == corpus.num_records
    for row in rows:
        record = Conversation.from_json(json.loads(row["record"]))
        assert record.domain == row["domain"]
        if (record.id, "truncated") not in truth:
            assert Image.open(io.BytesIO(row["image"])).convert("RGB").size == (64, 64)


def test_the_trusted_pairs_share_no_picture_with_the_raw_ones(corpus: CorpusInfo) -> None:
    trusted = _pairs(Path(corpus.folder), "trusted/trusted-*.tar")
    raw = {_image(members) for members in _pairs(Path(corpus.folder), "raw/pairs-*.tar").values()}
    assert len(trusted) == NUMBERS["num_trusted"]
    assert not raw & {_image(members) for members in trusted.values()}


def test_the_same_seed_gives_the_same_files(corpus: CorpusInfo, tmp_path: Path) -> None:
    again = write_corpus(tmp_path / "again", **NUMBERS, progress=NullProgress())
    first, second = Path(corpus.folder), Path(again.folder)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_an_interrupted_corpus_is_absent_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stop(NullProgress):
        def step(self, name: str, total: float | None = None, unit: str = "") -> Any:
            outer = super().step(name, total, unit)

            class Interrupting:
                def __enter__(self) -> "Interrupting":
                    outer.__enter__()
                    return self

                def __exit__(self, *error: Any) -> None:
                    outer.__exit__(*error)

                def advance(self, count: float = 1) -> None:
                    raise KeyboardInterrupt

                def note(self, text: str) -> None: ...

            return Interrupting()

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_corpus(out, 1, 30, 10, 10, Stop())
    assert not out.exists()
    (aside,) = tmp_path.iterdir()
    written = (aside / "raw" / "pairs-0000.tar").stat().st_mtime_ns
    info = write_corpus(out, 1, 30, 10, 10, NullProgress())
    assert (out / "raw" / "pairs-0000.tar").stat().st_mtime_ns == written
    assert not aside.exists()
    assert read_info(out) == info


def test_a_second_call_keeps_the_corpus_and_another_one_is_refused(corpus: CorpusInfo) -> None:
    assert write_corpus(Path(corpus.folder), **NUMBERS, progress=NullProgress()) == corpus
    with pytest.raises(UserMistake, match="already holds"):
        write_corpus(Path(corpus.folder), **{**NUMBERS, "seed": 6}, progress=NullProgress())

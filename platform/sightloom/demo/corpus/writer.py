"""Writes the corpus as raw files with planted defects, and the truth about them beside it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom.config import canonical_json, digest
from sightloom.demo.corpus import defects
from sightloom.demo.corpus.draws import keyed, maybe
from sightloom.demo.corpus.forms import QUESTIONS, TRUTH, RawPair, put, write_table, write_tar
from sightloom.demo.corpus.painters import sample
from sightloom.errors import UserMistake
from sightloom.progress import Progress, Step

PAIRS_A_FILE: Final = 1000
PICTURES_A_FILE: Final = 1000
VERSION: Final = 2  # part of the digest: raise it when the same seed gives other files
_DEFECTS, _FORMATS, _QUESTIONS = 2, 3, 4  # purposes of keys
_PICTURES_FROM, _TRUSTED_FROM = 1_000_000, 2_000_000  # where the sample indices of each kind begin
_BROKEN_PICTURE, _REPEATED_RECORD = 0.005, 0.005


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """What stands in a corpus folder; `defects` counts the pairs of each kind, `ok` among them."""

    folder: str
    seed: int
    num_pairs: int
    num_pictures: int
    num_records: int
    num_trusted: int
    defects: dict[str, int]
    digest: str

    @property
    def pairs(self) -> str:
        """Glob of the raw pairs."""
        return f"{self.folder}/raw/pairs-*.tar"

    @property
    def questions(self) -> str:
        """Glob of the raw questions."""
        return f"{self.folder}/raw/questions-*.parquet"

    @property
    def trusted(self) -> str:
        """Glob of the clean seed set, for the filter network."""
        return f"{self.folder}/trusted/trusted-*.tar"

    @property
    def truth(self) -> str:
        """Path of the truth: file, key, domain, defect; curation never reads it."""
        return f"{self.folder}/truth.parquet"


def write_corpus(
    out: Path, seed: int, num_pairs: int, num_pictures: int, num_trusted: int, progress: Progress
) -> CorpusInfo:
    """Write a corpus into `out`, which appears whole or not at all; an interrupted call goes on where it stopped.

    Args:
        out: the folder to make: `raw/`, `trusted/`, `truth.parquet`, `corpus.json`.
        seed: the same seed and numbers give the same bytes.
        num_pairs: image–caption pairs, defects included.
        num_pictures: pictures with questions, other ones than those of the pairs.
        num_trusted: clean pairs, other ones again.
        progress: where to say how far it is.

    Raises:
        UserMistake: `out` holds something else.
    """
    request = {"version": VERSION, "seed": seed, "pairs": num_pairs, "pictures": num_pictures, "trusted": num_trusted}
    name = digest(request)
    if out.exists() and any(out.iterdir()):
        return _known(out, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.partial-{name[:12]}")
    with progress.step("corpus", num_pairs + num_pictures + num_trusted, "pictures") as step:
        jobs = [
            *_split("pairs", num_pairs, PAIRS_A_FILE, _write_pairs),
            *_split("questions", num_pictures, PICTURES_A_FILE, _write_questions),
            *_split("trusted", num_trusted, PAIRS_A_FILE, _write_trusted),
        ]
        truths = [_run(job, aside, seed, step) for job in jobs]
    truth = pa.concat_tables(truths) if truths else TRUTH.empty_table()
    write_table(aside / "truth.parquet", truth)
    kinds = Counter(row["defect"] for row in truth.to_pylist() if row["file"].startswith("pairs-"))
    records = sum(row["file"].startswith("questions-") for row in truth.to_pylist())
    info = CorpusInfo(str(out), seed, num_pairs, num_pictures, records, num_trusted, dict(sorted(kinds.items())), name)
    fields = {key: value for key, value in asdict(info).items() if key != "folder"}
    put(aside / "corpus.json", canonical_json(fields))
    if out.exists():
        out.rmdir()
    os.replace(aside, out)
    return info


def read_info(folder: Path) -> CorpusInfo:
    """What `write_corpus` wrote into a folder."""
    return CorpusInfo(folder=str(folder), **json.loads((folder / "corpus.json").read_text()))


def _known(out: Path, name: str) -> CorpusInfo:
    if (out / "corpus.json").exists():
        info = read_info(out)
        if info.digest == name:
            return info
    raise UserMistake(f"{out} already holds something else than this corpus", "name another folder, or remove that one")


@dataclass(frozen=True, slots=True)
class _Job:
    file: str
    first: int
    count: int
    write: Callable[[Path, "_Job", int], pa.Table]


def _split(name: str, total: int, size: int, write: Callable[[Path, _Job, int], pa.Table]) -> Iterator[_Job]:
    for number, first in enumerate(range(0, total, size)):
        yield _Job(f"{name}-{number:04d}", first, min(size, total - first), write)


def _run(job: _Job, folder: Path, seed: int, step: Step) -> pa.Table:
    done = folder / "parts" / f"{job.file}.parquet"
    if not done.exists():
        write_table(done, job.write(folder, job, seed))
    step.advance(job.count)
    return pq.read_table(done)


def _truth(rows: list[tuple[str, str, str, str]]) -> pa.Table:
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=TRUTH)


def _write_pairs(folder: Path, job: _Job, seed: int) -> pa.Table:
    samples = [sample(seed, index) for index in range(job.first, job.first + job.count)]
    fates = defects.plan(keyed(seed, _DEFECTS, job.first), [one.caption for one in samples])
    pairs, rows = [], []
    for place, fate in enumerate(fates):
        index = job.first + place
        rng = keyed(seed, _FORMATS, index)
        copy = fate.defect in ("duplicate", "reencoded")
        pictured = samples[fate.source if copy else place]
        extension = "jpg" if maybe(keyed(seed, _FORMATS, job.first + (fate.source if copy else place)), 0.2) else "png"
        caption = samples[fate.source].caption
        if fate.defect == "reencoded":
            extension, image = "jpg", defects.encode(pictured.image, "jpg", quality=80)
        elif fate.defect == "tiny":
            extension, image = "png", defects.tiny()
        else:
            image = defects.encode(pictured.image, extension)
        if fate.defect == "truncated":
            image = defects.truncated(image)
        if fate.defect == "empty":
            caption = ""
        elif fate.defect == "boilerplate":
            caption = defects.boilerplate(rng)
        key = f"{index:08d}"
        pairs.append(RawPair(key, extension, image, caption, {"domain": pictured.domain}))
        rows.append((f"{job.file}.tar", key, pictured.domain, fate.defect))
    write_tar(folder / "raw" / f"{job.file}.tar", pairs)
    return _truth(rows)


def _write_trusted(folder: Path, job: _Job, seed: int) -> pa.Table:
    pairs = []
    for index in range(job.first, job.first + job.count):
        one = sample(seed, _TRUSTED_FROM + index)
        image = defects.encode(one.image, "png")
        pairs.append(RawPair(f"{index:08d}", "png", image, one.caption, {"domain": one.domain}))
    write_tar(folder / "trusted" / f"{job.file}.tar", pairs)
    return TRUTH.empty_table()


def _write_questions(folder: Path, job: _Job, seed: int) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in QUESTIONS.names}
    rows = []
    for index in range(job.first, job.first + job.count):
        one = sample(seed, _PICTURES_FROM + index)
        rng = keyed(seed, _QUESTIONS, index)
        image, broken = defects.encode(one.image, "png"), maybe(rng, _BROKEN_PICTURE)
        if broken:
            image = defects.truncated(image)
        for record in one.records(f"{index:08d}"):
            for copy in range(2 if maybe(rng, _REPEATED_RECORD) else 1):
                columns["image"].append(image)
                columns["record"].append(canonical_json(record.to_json()).decode())
                columns["domain"].append(one.domain)
                defect = "truncated" if broken else "duplicate" if copy else defects.OK
                rows.append((f"{job.file}.parquet", record.id, one.domain, defect))
    write_table(folder / "raw" / f"{job.file}.parquet", pa.table(columns, schema=QUESTIONS))
    return _truth(rows)

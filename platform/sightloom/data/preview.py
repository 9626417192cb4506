"""A look at a sample of the corpus: it is scored in a temporary place, and the keep rate, bytes and hours follow."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from sightloom import storage
from sightloom.config import digest
from sightloom.data import artifacts, engine, fetch, lineage
from sightloom.data.curation import compact, dedup, derive_missing, report, scored_rows, select
from sightloom.data.fetch import Inputs
from sightloom.data.fetch.lists import url_lists
from sightloom.data.forecast import Forecast, forecast
from sightloom.data.ledger import NOTHING
from sightloom.data.prepare import Prepared, prepare
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import Job
from sightloom.data.sources.chunks import SourceFile
from sightloom.data.sources.config import Source, UrlSource
from sightloom.errors import SightloomError, UserMistake
from sightloom.metrics import Interval, wilson
from sightloom.progress import NullProgress, Progress

MAX_CHUNK = 64  # chunks of one file that a sample may take


@dataclass(frozen=True)
class Preview:
    """What a sample of `rows` says about the whole: shares with 95 % intervals, and what they come to.

    `rules` are the shares of usable rows that each rule alone lets stay. Duplicates are counted inside the sample only,
    so that `keep` is rather too high on a corpus with copies far apart.
    """

    rows: int
    keep: Interval
    rules: dict[str, Interval]
    dropped: dict[str, int]
    kept_rows: int
    kept_bytes: int
    rows_per_s: float
    hours: float
    forecast: Forecast

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def preview(recipe: Recipe, rows: int, cores: int, progress: Progress, html: str | None) -> Preview:
    """Score about `rows` rows, chunks drawn by hash(seed, file), and forecast the whole; OUT is left untouched.

    Args:
        recipe: as given.
        rows: how many to score, in whole chunks.
        cores: of this Ray.
        progress: where to say how far it is.
        html: where to write the report page of the sample, if asked.
    """
    with tempfile.TemporaryDirectory(prefix="sightloom-preview-") as scratch:
        sampled = _sampled_lists(prepare(recipe, True).recipe, scratch, rows)
        prepared = prepare(sampled.model_copy(update={"out": f"{scratch}/out"}), True)
        slots = engine.host_slots(prepared.recipe)
        fetch.stage(prepared.recipe, slots, engine.run_tasks, progress)
        whole = fetch.inputs(prepared.recipe)
        started, scored_files = time.monotonic(), []
        with progress.step("preview", total=rows, unit="rows") as step:
            taken = 0
            for files in _rounds(whole, recipe.seed, rows, prepared.recipe.score.chunk_rows):
                before = taken
                states = tuple(NOTHING for _ in prepared.plan.groups)
                for wave in engine.run_waves(prepared, [Job(file, states, chunk) for file, chunk in files]):
                    for header in wave:
                        if "problem" in header:
                            raise UserMistake(header["problem"], header["hint"])
                        taken += header["rows"]
                        step.advance(header["rows"])
                        scored_files.append(header["chunk"].rpartition("-")[0])
                if taken >= rows or taken == before:
                    break
        seconds = time.monotonic() - started
        if not taken:
            raise SightloomError("the sample holds no rows", "check the sources")
        drawn = frozenset(scored_files)
        per_source = [
            [file for file, _ in _every(files, recipe.seed) if file.file_id in drawn] for files in whole.per_source
        ]
        found = _judge(prepared, Inputs(per_source, whole.not_fetched), html)
        coming = forecast(recipe, cores, taken / seconds / cores)
    bytes_kept = found.kept_bytes / max(1, taken) * coming.rows
    return Preview(
        rows=taken,
        keep=found.keep,
        rules=found.rules,
        dropped=found.dropped,
        kept_rows=round(found.keep.value * coming.rows),
        kept_bytes=round(bytes_kept),
        rows_per_s=round(taken / seconds, 2),
        hours=coming.hours,
        forecast=coming,
    )


def _every(files: list[SourceFile], seed: int) -> Iterator[tuple[SourceFile, int]]:
    """Yield (file, chunk) in the order of the draw: the first chunks of all files, then the second ones."""
    drawn = sorted(files, key=lambda file: digest([seed, file.file_id]))
    for chunk in range(MAX_CHUNK):
        for file in drawn:
            yield dataclasses.replace(file, file_id=digest([file.file_id, chunk])[:16]), chunk


def _rounds(whole: Inputs, seed: int, rows: int, chunk_rows: int) -> Iterator[list[tuple[SourceFile, int]]]:
    """Yield batches of chunks, each about as many as the rows still need if every chunk is full."""
    every = _every(whole.files, seed)
    size = max(1, rows // chunk_rows)
    while batch := list(itertools.islice(every, size)):
        yield batch


@dataclass(frozen=True)
class _Found:
    keep: Interval
    rules: dict[str, Interval]
    dropped: dict[str, int]
    kept_bytes: int


def _judge(prepared: Prepared, inputs: Inputs, html: str | None) -> _Found:
    """Select among the sample as `curate` would, and write its page if it is asked for."""
    silent = NullProgress()
    derive_missing(prepared, inputs.files, silent)
    compact(prepared, inputs.files, 0)
    scored = scored_rows(prepared, inputs)
    duplicates = dedup(prepared, scored, silent)
    decision = select(prepared, scored, duplicates, silent)
    kept = scored.read(["payload_bytes"], decision.keep).column("payload_bytes")
    if html is not None:
        prints = artifacts.fingerprints(prepared, scored.chunks)
        manifest = lineage.make_manifest(prepared, inputs, decision, prints, [], ())
        page = report(prepared, inputs, scored, duplicates, decision, manifest, {}, silent)
        storage.write(html, storage.read_bytes(page))
    usable = scored.status.get("ok", 0)
    return _Found(
        wilson(int(decision.keep.sum()), scored.num_rows),
        {name: wilson(usable - false, usable) for name, false in decision.alone.items()},
        decision.dropped,
        int(pc.sum(kept).as_py() or 0),
    )


def _sampled_lists(recipe: Recipe, scratch: str, rows: int) -> Recipe:
    """Replace each list of URLs by its first rows."""
    sources: list[Source] = []
    for number, source in enumerate(recipe.source):
        if not isinstance(source, UrlSource):
            sources.append(source)
            continue
        lists = url_lists(source)
        lines = []
        for listed in lists:
            every = (row for _, _, chunk in listed.chunks() for row in chunk)
            for row in itertools.islice(every, max(1, rows // len(lists))):
                named = {source.fields.get("url", "url"): row["url"], source.fields.get("text", "text"): row["text"]}
                lines.append(json.dumps({**row["rest"], **named}, default=str))
        uri = f"{scratch}/urls-{number}.jsonl"
        storage.write(uri, "\n".join(lines).encode())
        fields = {name: place for name, place in source.fields.items() if name != "sha256"}
        sources.append(source.model_copy(update={"uri": uri, "fields": fields}))
    return recipe.model_copy(update={"source": tuple(sources)})

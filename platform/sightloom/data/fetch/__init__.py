"""Downloading lists of URLs into staged tars, politely and without reaching into private networks.

Every URL has a status row; what was fetched is then an ordinary source of tars. A chunk of URLs is fetched under names
of its own and then committed; fetching its failed rows again is its next generation, and a row's newest status counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import digest
from sightloom.data.fetch.chunk import FetchJob, commit_path, fetch_chunk
from sightloom.data.fetch.client import OK
from sightloom.data.fetch.lists import UrlList, url_lists
from sightloom.data.fetch.slots import HostSlots
from sightloom.data.ledger import FileState, committed_in
from sightloom.data.recipe import Recipe
from sightloom.data.sources.chunks import SourceFile, list_files, source_file
from sightloom.data.sources.config import UrlSource
from sightloom.errors import UserMistake
from sightloom.progress import Progress
from sightloom.storage import FileInfo

READERS = 16
ALL = "*"
FETCH_CPUS = 0.5
Tasks = Callable[[Callable[[Any], Any], Iterable[Any], float], Iterator[tuple[Any, Any]]]


@dataclass(frozen=True)
class Inputs:
    """For each source of the recipe its files, and the URLs that were not fetched, by reason."""

    per_source: list[list[SourceFile]]
    not_fetched: dict[str, int]

    @property
    def files(self) -> list[SourceFile]:
        """All files, by (address, id): the order of the curation's rows."""
        every = (file for files in self.per_source for file in files)
        return sorted(every, key=lambda file: (file.uri, file.file_id))


class NotFetched(UserMistake):
    """A list of URLs is not wholly downloaded yet."""


@dataclass(frozen=True)
class _Stage:
    """Where one source's downloads lie: OUT/fetch/<fp>/gen-<g>."""

    folder: str
    robots: str
    source: UrlSource

    @classmethod
    def of(cls, source: UrlSource, out: str) -> _Stage:
        polite = {"at_once", "per_host", "connect_s", "total_s", "tries"}  # these do not decide what comes
        relevant = source.fetch.model_dump(mode="json", exclude=polite)
        fingerprint = digest({"uri": source.uri, "fields": source.fields, "config": relevant})[:12]
        return cls(storage.join(out, "fetch", fingerprint), storage.join(out, "fetch", "robots"), source)

    def generation(self, number: int) -> str:
        return storage.join(self.folder, f"gen-{number}")

    def commits(self, lists: Iterable[UrlList]) -> dict[str, list[dict[str, Any]]]:
        """Return every chunk's commits, one a generation; NotFetched where a chunk of a list is missing."""
        wanted: list[list[str]] = []
        missing: list[str] = []
        states: list[dict[str, FileState]] = []
        while not states or states[-1]:
            states.append(committed_in(storage.join(self.generation(len(states)), "commit")))
        for url_list in lists:
            state = states[0].get(url_list.identity)
            if state is None or not state.complete:
                missing.append(url_list.uri)
                continue
            for index in range((state.last or 0) + 1):
                chunk, last = f"{url_list.identity}-{index:05d}", index == state.last
                generations = [g for g, found in enumerate(states)
                               if url_list.identity in found and index in found[url_list.identity].chunks]  # fmt: skip
                wanted.append([commit_path(self.generation(number), chunk, last) for number in generations])
        if missing:
            raise NotFetched(f"'{missing[0]}' is not wholly fetched", "run `sightloom score` first")
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda uris: [storage.read_json(uri) for uri in uris], wanted))
        return {commits[0]["chunk"]: commits for commits in found}


def inputs(recipe: Recipe) -> Inputs:
    """List all files that are to be scored; NotFetched where a list of URLs was not downloaded wholly."""
    per_source: list[list[SourceFile]] = []
    status: Counter[str] = Counter()
    for source in recipe.source:
        if not isinstance(source, UrlSource):
            per_source.append(list_files(source, recipe.score.chunk_rows))
            continue
        per_source.append([])
        for commits in _Stage.of(source, recipe.out).commits(url_lists(source)).values():
            for commit in commits:
                status.update(commit["status"])
                status.subtract(commit["replaced"])
                per_source[-1].append(_staged(commit, recipe.score.chunk_rows))
    status.pop(OK, None)
    return Inputs(per_source, {name: count for name, count in sorted(status.items()) if count})


def _staged(commit: dict[str, Any], chunk_rows: int) -> SourceFile:
    info = FileInfo(commit["tar"], commit["bytes"], commit["sha256"])
    return source_file("webdataset", info, (("domain", "json.domain"), ("text", "txt")), chunk_rows)


def stage(
    recipe: Recipe, slots: HostSlots | None, run: Tasks, progress: Progress, retry: tuple[str, ...] | None = None
) -> None:
    """Fetch every chunk of URLs that is not committed, and then again those rows that are to be retried.

    Args:
        recipe: with its sources.
        slots: limits the requests to a host over all tasks; None = each task by itself.
        run: runs a function on many jobs elsewhere (`engine.run_tasks`).
        progress: where to say how far it is.
        retry: statuses whose rows are fetched once more (`*`: every failure); None = none.
    """
    for source in recipe.source:
        if isinstance(source, UrlSource):
            place, lists = _Stage.of(source, recipe.out), url_lists(source)
            with progress.step("fetch", total=_urls_left(place, lists), unit="urls") as step:
                for job, _ in run(fetch_chunk, _missing(place, lists, slots), FETCH_CPUS):
                    step.advance(len(job.rows))
            if retry is not None:
                with progress.step("fetch again", unit="urls") as step:
                    for job, _ in run(fetch_chunk, _failed(place, lists, slots, retry), FETCH_CPUS):
                        step.advance(len(job.rows))


def _urls_left(place: _Stage, lists: list[UrlList]) -> int:
    states = committed_in(storage.join(place.generation(0), "commit"))
    waiting = [(found, states.get(found.identity)) for found in lists]
    return sum(
        max(0, found.count() - (len(state.chunks) * found.chunk_rows if state else 0))
        for found, state in waiting
        if state is None or not state.complete
    )


def _missing(place: _Stage, lists: list[UrlList], slots: HostSlots | None) -> Iterator[FetchJob]:
    folder = place.generation(0)
    states = committed_in(storage.join(folder, "commit"))
    for url_list in lists:
        state = states.get(url_list.identity)
        if state is not None and state.complete:
            continue
        for index, last, rows in url_list.chunks():
            if state is None or index not in state.chunks:
                chunk = f"{url_list.identity}-{index:05d}"
                yield FetchJob(chunk, last, rows, place.source.fetch, folder, place.robots, {}, slots)


def _failed(place: _Stage, lists: list[UrlList], slots: HostSlots | None, retry: tuple[str, ...]) -> Iterator[FetchJob]:
    """Yield, for each chunk with rows whose newest status is to be retried, its next generation."""
    commits = place.commits(lists)
    for url_list in lists:
        names = [name for name in commits if name.startswith(url_list.identity)]
        if not any(_hopes(commits[name], retry) for name in names):
            continue
        for index, last, rows in url_list.chunks():
            chunk = f"{url_list.identity}-{index:05d}"
            newest: dict[int, str] = {}
            if not _hopes(commits[chunk], retry):
                continue
            for commit in commits[chunk]:
                table = pq.read_table(pa.BufferReader(storage.read_bytes(commit["table"])), columns=["row", "status"])
                newest |= dict(zip(*(table.column(name).to_pylist() for name in ("row", "status")), strict=True))
            wanted = [row for row in rows if _retried(newest[row["row"]], retry)]
            if wanted:
                replaced = dict(Counter(newest[row["row"]] for row in wanted))
                folder = place.generation(len(commits[chunk]))
                yield FetchJob(chunk, last, wanted, place.source.fetch, folder, place.robots, replaced, slots)


def _hopes(commits: list[dict[str, Any]], retry: tuple[str, ...]) -> bool:
    return any(_retried(status, retry) for commit in commits for status in commit["status"])


def _retried(status: str, retry: tuple[str, ...]) -> bool:
    return status != OK and (ALL in retry or status in retry or status.removeprefix("fetch_") in retry)

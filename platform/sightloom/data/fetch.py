"""Downloading lists of URLs into staged tars, politely and without reaching into private networks.

The address is checked where each connection is made, so literals, redirects and changing DNS answers all meet it. Every
URL has a status; what was fetched is then an ordinary source of tars.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import aiohttp
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from sightloom import __version__, storage
from sightloom.address import blocked_by, guarded_socket_factory
from sightloom.config import canonical_json, digest
from sightloom.data.decode import EXTENSIONS, image_format
from sightloom.data.ledger import parquet_bytes
from sightloom.data.recipe import FetchConfig, Recipe, UrlSource
from sightloom.data.shards.tarfiles import header
from sightloom.data.sources.chunks import SourceFile, source_file
from sightloom.data.sources.parquet import plain_json
from sightloom.errors import UserMistake
from sightloom.progress import Progress
from sightloom.storage import FileInfo

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 120.0
MAX_ROBOTS_BYTES = 500_000
OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex", "noml")
RETRIED = frozenset({429, 500, 502, 503, 504})
OK = "ok"
TAR_BLOCK = 512


@dataclass(frozen=True)
class Staged:
    """For each source of the recipe its staged files, and the URLs that were not fetched, by reason."""

    files: list[list[SourceFile]]
    dropped: dict[str, int]


@dataclass(frozen=True)
class FetchJob:
    """One chunk of URLs: rows with url, text and the other columns."""

    chunk: str
    rows: list[dict[str, Any]]
    config: FetchConfig
    folder: str


def stage(
    recipe: Recipe, remote: Callable[[Any], Callable[..., Any]], result: Callable[[Any], Any], progress: Progress
) -> Staged:
    """Fetch every list of URLs that is not staged yet.

    Args:
        recipe: with its sources.
        remote: makes a function run elsewhere; what it returns is given to `result`.
        result: waits for one.
        progress: where to say how far it is.
    """
    files: list[list[SourceFile]] = []
    dropped: dict[str, int] = {}
    for source in recipe.source:
        if not isinstance(source, UrlSource):
            files.append([])
            continue
        listed = list(_jobs(source, recipe.out))
        staged: list[SourceFile] = []
        with progress.step("fetch", total=sum(len(job.rows) for job in listed), unit="urls") as step:
            todo = [job for job in listed if not storage.exists(_commit_uri(job))]
            for job in listed:
                if job not in todo:
                    step.advance(len(job.rows))
            waiting = [(job, remote(fetch_chunk)(job)) for job in todo]
            for job, reference in waiting:
                result(reference)
                step.advance(len(job.rows))
        for job in listed:
            commit = storage.read_json(_commit_uri(job))
            for reason, count in commit["status"].items():
                if reason != OK:
                    dropped[reason] = dropped.get(reason, 0) + count
            info = FileInfo(storage.join(job.folder, "tar", f"{job.chunk}.tar"), commit["bytes"], commit["sha256"])
            mapped = (("domain", "json.domain"), ("text", "txt"))
            staged.append(source_file("webdataset", info, mapped, recipe.score.chunk_rows))
        files.append(staged)
    return Staged(files, dict(sorted(dropped.items())))


def _jobs(source: UrlSource, out: str) -> Iterator[FetchJob]:
    """Cut the lists into chunks; the folder is named by what decides the download."""
    config = source.fetch
    relevant = config.model_dump(mode="json", exclude={"at_once", "per_host", "connect_s", "total_s", "tries"})
    fingerprint = digest({"uri": source.uri, "fields": source.fields, "config": relevant})[:12]
    folder = storage.join(out, "fetch", fingerprint, "gen-0")
    for info in storage.listing(source.uri):
        table = _read_list(info.uri)
        names = {"url": source.fields.get("url", "url"), "text": source.fields.get("text", "text")}
        missing = [name for name in names.values() if name not in table.column_names]
        if missing:
            raise UserMistake(f"'{info.uri}' has no column {missing}", f"have: {', '.join(table.column_names)}")
        rows = table.to_pylist()
        identity = digest([info.uri, info.size, info.version, config.chunk_rows])[:16]
        for number, start in enumerate(range(0, len(rows), config.chunk_rows)):
            part = [
                {"url": row.pop(names["url"]), "text": row.pop(names["text"]), "rest": row}
                for row in rows[start : start + config.chunk_rows]
            ]
            yield FetchJob(f"{identity}-{number:05d}", part, config, folder)


def _read_list(uri: str) -> pa.Table:
    try:
        with storage.open_read(uri) as file:
            if uri.endswith(".parquet"):
                return pq.read_table(file)
            return pa.csv.read_csv(file) if uri.endswith((".csv", ".tsv")) else pa.json.read_json(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserMistake(f"'{uri}' is not a readable list of URLs: {error}", "give parquet, csv or jsonl") from error


def _commit_uri(job: FetchJob) -> str:
    return storage.join(job.folder, "commit", f"{job.chunk}.json")


def fetch_chunk(job: FetchJob) -> dict[str, int]:
    """Fetch one chunk's URLs; write its tar and its status table, then commit. Returns rows by status."""
    outcomes = asyncio.run(_fetch_all(job.rows, job.config))
    tar = io.BytesIO()
    for number, (row, outcome) in enumerate(zip(job.rows, outcomes, strict=True)):
        if outcome.data is None:
            continue
        meta = {**json.loads(plain_json(row["rest"])), "url": row["url"]}
        text = row["text"] if row["text"] is not None else ""
        members = [(EXTENSIONS[str(image_format(outcome.data))], outcome.data), ("txt", str(text).encode())]
        for extension, data in [*members, ("json", canonical_json(meta))]:
            tar.write(header(f"{number:06d}.{extension}", len(data)) + data + bytes(-len(data) % TAR_BLOCK))
    tar.write(bytes(2 * TAR_BLOCK))
    content = tar.getvalue()
    status: dict[str, int] = {}
    for outcome in outcomes:
        status[outcome.status] = status.get(outcome.status, 0) + 1
    columns = {
        "url": pa.array([row["url"] for row in job.rows], pa.string()),
        "status": pa.array([outcome.status for outcome in outcomes], pa.string()),
        "detail": pa.array([outcome.detail for outcome in outcomes], pa.string()),
        "bytes": pa.array([len(outcome.data or b"") for outcome in outcomes], pa.int64()),
    }
    storage.write(storage.join(job.folder, "tar", f"{job.chunk}.tar"), content)
    storage.write(storage.join(job.folder, "status", f"{job.chunk}.parquet"), parquet_bytes(pa.table(columns)))
    commit = {"status": status, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    storage.create(_commit_uri(job), canonical_json(commit))
    return status


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one URL."""

    status: str
    detail: str = ""
    data: bytes | None = None


async def _fetch_all(rows: Sequence[dict[str, Any]], config: FetchConfig) -> list[Outcome]:
    connector = aiohttp.TCPConnector(
        limit=config.at_once,
        limit_per_host=config.per_host,
        socket_factory=guarded_socket_factory(config.allow_networks),
    )
    agent = f"sightloom/{__version__} (+{config.contact})"
    timeout = aiohttp.ClientTimeout(total=config.total_s, sock_connect=config.connect_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers={"User-Agent": agent}, trust_env=False, auto_decompress=False
    ) as session:
        fetcher = _Fetcher(session, config, agent)
        return list(await asyncio.gather(*(fetcher.fetch(row["url"]) for row in rows)))


class _Fetcher:
    """Fetches URLs of one chunk; robots.txt is read once a host."""

    def __init__(self, session: aiohttp.ClientSession, config: FetchConfig, agent: str) -> None:
        self.session, self.config, self.agent = session, config, agent
        self.slots = asyncio.Semaphore(config.at_once)
        self.robots: dict[str, asyncio.Task[RobotFileParser | None]] = {}

    async def fetch(self, url: object) -> Outcome:
        """Fetch one URL, trying again what may pass."""
        if not isinstance(url, str) or not url:
            return Outcome("fetch_scheme", "no URL")
        async with self.slots:
            outcome = Outcome("fetch_timeout")
            for attempt in range(self.config.tries):
                outcome, wait = await self._attempt(url)
                if wait is None or attempt + 1 == self.config.tries:
                    break
                await asyncio.sleep(wait or 0.5 * 2**attempt * (0.5 + random.random()))
            return outcome

    async def _attempt(self, url: str) -> tuple[Outcome, float | None]:
        """Return the outcome and, if another try makes sense, the seconds to wait (0 = the usual back-off)."""
        try:
            return await self._follow(url)
        except TimeoutError as error:
            return Outcome("fetch_timeout", str(error)), 0.0
        except (aiohttp.ClientError, OSError) as error:
            if blocked_by(error):
                return Outcome("fetch_blocked_address", str(error)), None
            is_dns = isinstance(error, aiohttp.ClientConnectorDNSError)
            return Outcome("fetch_dns" if is_dns else "fetch_connection", str(error)), 0.0
        except ValueError as error:
            return Outcome("fetch_scheme", str(error)), None

    async def _follow(self, url: str) -> tuple[Outcome, float | None]:
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or parts.username is not None or not parts.hostname:
                return Outcome("fetch_scheme", url[:200]), None
            if self.config.robots and not await self._allowed(url):
                return Outcome("fetch_robots"), None
            async with self.session.get(url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                return await self._read(response)
        return Outcome("fetch_redirects", f"more than {MAX_REDIRECTS}"), None

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[Outcome, float | None]:
        if response.status != 200:
            after = response.headers.get("Retry-After", "")
            wait = min(float(after), MAX_RETRY_AFTER_S) if after.isdigit() else 0.0
            return Outcome(f"fetch_http_{response.status}"), wait if response.status in RETRIED else None
        tags = ",".join(response.headers.getall("X-Robots-Tag", [])).lower().replace(" ", "").split(",")
        if any(tag.rsplit(":", 1)[-1] in OPT_OUT for tag in tags):
            return Outcome("fetch_opt_out"), None
        limit = int(self.config.max_mb * 1e6)
        content = bytearray()
        async for block in response.content.iter_chunked(1 << 16):
            content += block
            if len(content) > limit:
                return Outcome("fetch_too_large", f"over {self.config.max_mb:g} MB"), None
        if image_format(bytes(content[:16])) is None:
            return Outcome("fetch_not_image", f"its first bytes are {bytes(content[:8])!r}"), None
        return Outcome(OK, data=bytes(content)), None

    async def _allowed(self, url: str) -> bool:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self.robots:
            self.robots[origin] = asyncio.create_task(self._read_robots(origin))
        rules = await self.robots[origin]
        return rules is not None and rules.can_fetch(self.agent, url)

    async def _read_robots(self, origin: str) -> RobotFileParser | None:
        """Return a host's rules; None when it cannot say them now."""
        rules = RobotFileParser()
        async with self.session.get(origin + "/robots.txt") as response:
            if response.status >= 500:
                return None
            text = await response.content.read(MAX_ROBOTS_BYTES) if response.status == 200 else b""
        rules.parse(text.decode("utf-8", "replace").splitlines())
        return rules

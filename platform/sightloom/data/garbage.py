"""What lies under OUT and no commit names: fragments of killed workers, losers of races, half-written files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sightloom import storage
from sightloom.storage import FileInfo

DAY_S = 86_400.0
READERS = 16
# What a file is, by its place below OUT, and the JSON files that may name it.
_COMMIT = re.compile(r"^(scores/[^/]+|fetch/[0-9a-f]{12}/gen-\d+)/(commit|segments)/[^/]+\.json$")
_PLAN = re.compile(r"^plan/[^/]+/commit/[^/]+\.json$")
_MANIFEST = re.compile(r"^shards/[^/]+/manifest\.json$")
_NAMED_ONLY = re.compile(
    r"^(scores/[^/]+/(data|emb|segments)/[^/]+\.(parquet|npy)|fetch/[0-9a-f]{12}/gen-\d+/(tar|status)/[^/]+"
    r"|shards/[^/]+/[^/]+\.(tar|tar\.idx|parquet))$"
)
_ASIDE = re.compile(
    r"(^|/)\.[^/]+\.[0-9a-f]{12}$|(^|/)\.sightloom-probe-[0-9a-f]{12}$|^dedup/[^/]+/buckets-[0-9a-f]{8}/[^/]+$"
)


def find_garbage(out: str, older_than_s: float = DAY_S) -> list[FileInfo]:
    """Return the files under OUT that no commit, plan or manifest names and that are older than a day.

    Younger ones may belong to a run that is under way.
    """
    base, before = out.rstrip("/") + "/", time.time() - older_than_s
    files = [(info, info.uri.removeprefix(base), changed) for info, changed in storage.walk(out)]
    saying = [info.uri for info, path, _ in files if any(p.match(path) for p in (_COMMIT, _PLAN, _MANIFEST))]
    with ThreadPoolExecutor(READERS) as pool:
        named = {name for names in pool.map(lambda uri: list(_named(base, uri)), saying) for name in names}
    return [
        info
        for info, path, changed in files
        if changed < before and (_ASIDE.search(path) or (_NAMED_ONLY.match(path) and path not in named))
    ]


def _named(base: str, uri: str) -> Iterator[str]:
    """Yield the paths below OUT that a commit or manifest names."""
    record, path = storage.read_json(uri), uri.removeprefix(base)
    if _COMMIT.match(path):
        group = path.rsplit("/", 2)[0]
        yield from (f"{group}/{record[name]}" for name in ("fragment", "embeddings") if name in record)
        for name in ("tar", "table"):
            if name in record:
                yield str(record[name]).removeprefix(base)
        return
    entries = record["shards"] if _MANIFEST.match(path) else [record["shard"]]
    for entry in entries:
        folder = path.rsplit("/", 1)[0] if _MANIFEST.match(path) else f"shards/{_series(entry['name'])}"
        yield from (f"{folder}/{name}" for name in (entry["name"], entry["name"] + ".idx", entry["table"]))


def _series(tar: str) -> str:
    return tar.rsplit("-", 1)[0]

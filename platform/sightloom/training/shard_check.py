"""Before anything is trained on shards they are held against their manifest, once an output folder."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.shards.manifest import Manifest
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress

_THREADS: Final = 8


def check_shards(manifest: Manifest, checksums: bool, out: Path, progress: Progress) -> None:
    """See that every shard is there and long enough, and with `checksums` what was written.

    What was found good is noted in `out` and not looked at again.

    Raises:
        UserMistake: some shards are missing or differ.
    """
    marker = out / f"checked-{manifest.digest[:12]}{'-sha256' if checksums else ''}.json"
    if marker.exists():
        return
    with progress.step("check shards", total=len(manifest.shards), unit="shards") as step:
        problems = []
        for problem in _problems(manifest, checksums):
            step.advance()
            problems += [problem] if problem else []
    if problems:
        raise UserMistake(
            f"{len(problems)} of {len(manifest.shards)} shards of '{manifest.uri}' cannot be trained on: {problems[0]}",
            "`sightloom verify` lists what is wrong; bring the shards again, or curate with --replace",
        )
    storage.write(str(marker), canonical_json({"manifest": manifest.digest, "checksums": checksums}))


def _problems(manifest: Manifest, checksums: bool) -> Iterator[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(partial(_problem, manifest, checksums), range(len(manifest.shards)))


def _problem(manifest: Manifest, checksums: bool, number: int) -> str:
    uri, shard = manifest.tar_uri(number), manifest.shards[number]
    try:
        if storage.size(uri) < shard.bytes:
            return f"'{uri}' is cut: {storage.size(uri)} bytes, its samples have {shard.bytes}"
        if checksums and storage.sha256_file(uri) != shard.sha256:
            return f"'{uri}' is not what was written: its SHA-256 differs"
    except SightloomError as error:
        return error.message
    return ""

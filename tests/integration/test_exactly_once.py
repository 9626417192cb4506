"""Killed anywhere, run again or run twice at once: the same bytes, and no committed row is scored again."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import (
    environment,
    finish,
    picture,
    put_tars,
    start,
    start_cluster,
    write_recipe,
    write_scorer,
)

from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

TARS, ROWS, CHUNKS = 3, 160, 15  # chunks of 32 rows
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def address() -> Any:
    """A Ray that outlives its drivers."""
    cluster = start_cluster(4)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, address: str) -> Any:
    """Raw tars, a scorer, and the shards of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("once")
    put_tars(str(root / "raw"), TARS, ROWS)
    scorer = write_scorer(root / "scorer")
    recipe = write_recipe(root / "calm.yaml", str(root / "raw"), str(root / "calm"), scorer)
    finish(start(recipe, environment(), address))
    return root, scorer, shards(root / "calm"), address


def shards(out: Path) -> dict[str, str]:
    """SHA-256 of each file of the finished shards, which are verified first."""
    folder = out / "shards" / "pool"
    assert verify(read_manifest(str(folder)), True, NullProgress()).problems == ()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def disturbed(world: Any, name: str, fault: dict[str, Any]) -> tuple[Path, Path, dict[str, str], Path]:
    root, scorer, *_ = world
    folder = root / f"faults-{name}"
    folder.mkdir()
    recipe = write_recipe(root / f"{name}.yaml", str(root / "raw"), str(root / name), scorer)
    env = environment({"nth": 0, "when": "after", **fault, "folder": str(folder)})
    return root / name, folder, env, recipe


def take_over(world: Any, out: Path, *left_out: str) -> None:
    """Start from what the calm run committed, but for the folders of these names: those steps are still to be done."""
    shutil.copytree(world[0] / "calm", out, ignore=shutil.ignore_patterns("plan", "report", "shards", *left_out))


def committed(out: Path) -> set[tuple[str, int]]:
    """(chunk, number of the group) of every commit."""
    found = set()
    for path in out.glob("scores/*/commit/*.json"):
        found.add((path.name.split(".")[0], 0 if path.parts[-3].startswith("base-") else 1))
    return found


def scored(folder: Path) -> list[tuple[str, int]]:
    """(chunk, group) of everything that was worked on, as the processes logged it."""
    found = []
    for name, groups in (("measured", (0,)), ("embedded", (1,))):
        if (folder / name).exists():
            for line in (folder / name).read_text().splitlines():
                chunk, missing = json.loads(line)
                found += [(chunk, group) for group in groups if group in (missing or ())]
    return found


def forget(folder: Path) -> None:
    for name in ("measured", "embedded"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "match", "nth", "when"),
    [
        ("worker-before", r"scores/base-.*/commit/", 5, "before"),
        ("worker-after", r"scores/base-.*/commit/", 5, "after"),
        ("actor-before", r"scores/clip_.*/commit/", 4, "before"),
        ("actor-after", r"scores/clip_.*/commit/", 4, "after"),
    ],
)
def test_a_killed_worker_or_actor_costs_nothing_but_its_chunk(
    world: Any, name: str, match: str, nth: int, when: str
) -> None:
    out, folder, env, recipe = disturbed(world, name, {"match": match, "nth": nth, "when": when})
    result = finish(start(recipe, env, world[3]))
    assert (folder / "killed").exists()
    assert (result["rows_in"], result["failed"]) == (TARS * ROWS, 0)
    assert shards(out) == world[2]
    again = [item for item, times in Counter(scored(folder)).items() if times > 1]
    assert len(again) <= 3, again  # the killed chunk, and what stood in the dead process's queue


def test_a_driver_killed_while_scoring_goes_on_without_scoring_a_committed_row_again(world: Any) -> None:
    out, folder, env, recipe = disturbed(world, "driver", {"match": "^never$"})
    for wanted in (4, 9):
        process = start(recipe, env, world[3])
        while len(committed(out)) < wanted and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(3)  # its workers end with it
        before = committed(out)
        assert wanted <= len(before) < 2 * CHUNKS
        forget(folder)
    finish(start(recipe, env, world[3]))
    assert shards(out) == world[2]
    assert not before & set(scored(folder))
    assert {chunk for chunk, _ in before} | {chunk for chunk, _ in scored(folder)} == {c for c, _ in committed(out)}


@pytest.mark.parametrize(
    ("name", "match", "when"),
    [
        ("segment", r"segments/00000\.json$", "before"),
        ("segment-after", r"segments/00000\.json$", "after"),
        ("duplicates", r"dedup/.*/done\.json$", "before"),
        ("decision-part", r"select/.*/decision\.parquet/", "after"),
        ("decision", r"select/.*/summary\.json$", "after"),
        ("plan", r"plan/.*/plan\.parquet/", "after"),
        ("sizes", r"shards/pool/sizes\.json$", "before"),
        ("manifest-before", r"shards/pool/manifest\.json$", "before"),
        ("manifest-after", r"shards/pool/manifest\.json$", "after"),
    ],
)
def test_a_driver_killed_between_steps_goes_on_from_there(world: Any, name: str, match: str, when: str) -> None:
    out, folder, env, recipe = disturbed(world, name, {"match": match, "nth": 1, "when": when})
    take_over(world, out, "segments", "dedup", "select")
    process = start(recipe, env, world[3])
    process.communicate(timeout=400)
    assert process.returncode == -signal.SIGKILL and (folder / "killed").exists()
    before = committed(out)
    assert len(before) == 2 * CHUNKS
    forget(folder)
    finish(start(recipe, env, world[3]))
    assert shards(out) == world[2]
    assert scored(folder) == []


@pytest.mark.parametrize(
    ("name", "match", "nth", "when"),
    [
        ("packer-index", r"shards/pool/.*\.tar\.idx$", 2, "before"),  # the tar is there, nothing says so
        ("packer-table", r"shards/pool/.*\.parquet$", 2, "after"),
        ("packer", r"plan/.*/commit/", 2, "before"),
        ("packer-after", r"plan/.*/commit/", 2, "after"),
        ("compactor", r"segments/.*\.parquet$", 1, "before"),
        ("compactor-after", r"segments/.*\.parquet$", 2, "after"),
    ],
)
def test_a_killed_packing_or_compacting_task_is_done_again(
    world: Any, name: str, match: str, nth: int, when: str
) -> None:
    out, folder, env, recipe = disturbed(world, name, {"match": match, "nth": nth, "when": when})
    take_over(world, out, *(("segments", "dedup", "select") if name.startswith("compactor") else ()))
    finish(start(recipe, env, world[3]))
    assert (folder / "killed").exists() and shards(out) == world[2]


def test_two_runs_at_once_end_in_one_result(world: Any) -> None:
    out, folder, env, recipe = disturbed(world, "twice", {"match": "^never$"})
    results = [finish(process) for process in [start(recipe, env, world[3]), start(recipe, env, world[3])]]
    assert results[0]["kept"] == results[1]["kept"] and shards(out) == world[2]
    assert len(committed(out)) == 2 * CHUNKS
    before = committed(out)
    forget(folder)
    finish(start(recipe, env, world[3]))
    assert not scored(folder) and committed(out) == before


def test_a_picture_that_kills_its_decoder_fails_alone(world: Any) -> None:
    root, scorer, _, address = world
    fatal = picture(70) + b"KILLS-ITS-DECODER"
    put_tars(str(root / "fatal-raw"), 1, ROWS, {70: fatal})
    recipe = write_recipe(root / "fatal.yaml", str(root / "fatal-raw"), str(root / "fatal"), scorer)
    process = start(recipe, environment({"folder": str(root), "nth": 0, "when": "after"}), address)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1 and "1 rows failed inside" in err
    result = json.loads(out)
    assert (result["rows_in"], result["failed"], result["kept"]) == (ROWS, 1, 80)
    manifest = read_manifest(result["manifest"])
    assert manifest.totals.rows_in == manifest.totals.kept + sum(manifest.totals.dropped.values()) + 1

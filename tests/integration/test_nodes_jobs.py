"""Jobs through the Jobs API on a Ray of separate nodes, of which one dies in each: curate, train, evaluate."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.nodes import Nodes, nodes

from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.demo.corpus import write_corpus
from sightloom.errors import SightloomError
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.training.consumed import consumed

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
KINDS = {
    "head": (0, {"head": 1}),
    "plain": (2, {"decode": 8, "driver": 1}),
    "fast-a": (2, {"accelerator": 2, "driver": 1}),
    "fast-b": (2, {"accelerator": 2, "driver": 1}),
}
ALIGN = {
    "name": "align", "stage": "align", "steps": 60,
    "objective": {"kind": "align", "contrastive": "siglip", "weight": 0.03, "caption_weight": 1.0},
    "mix": {"captions": {"where": 'kind == "pair"', "weight": 1.0}},
    "train": {"vision": 0.005, "fusion": 0.005, "decoder": 0.005, "head": 0.002},
    "evaluate": {"per_domain": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(tmp_path_factory.mktemp("nodes"), KINDS) as made:
        print(f"\n{made.alive()} nodes; {made.separate or 'each in a network namespace of its own'}")
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all nodes share, with a raw corpus in it."""
    made = tmp_path_factory.mktemp("shared")
    write_corpus(made / "corpus", 0, 400, 150, 50, NullProgress())
    return made


def start(cluster: Nodes, job: str, *sets: str) -> "subprocess.Popen[str]":
    words = [word for one in sets for word in ("--set", one)]
    env = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    command = [sys.executable, "-m", "sightloom.cli", "submit", f"jobs/{job}.yaml", "--cluster", cluster.address]
    return subprocess.Popen(
        [*command, *words, "--json"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-6000:]
    found: dict[str, Any] = json.loads(out)
    assert found["status"] == "SUCCEEDED"
    return found, err


def until(process: "subprocess.Popen[str]", seen: Callable[[], Any]) -> Any:
    """Wait for something while a job runs."""
    while not (found := seen()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return found


def said_by(cluster: Nodes, id: str) -> str:
    """A job's log; empty where it cannot be read yet: the agent of a node that has just come back is still starting."""
    try:
        return cluster.api.logs(id)
    except SightloomError:
        return ""


def curation(out: Path, folder: Path, clip: Path) -> list[str]:
    workers = {"scorers": 1, "decode_resources": {"decode": 0.1}, "scorer_resources": {"accelerator": 1}}
    return [
        f"set.out={out}", f"set.source.0.uri={folder}/corpus/raw/pairs-*.tar",
        f"set.source.1.uri={folder}/corpus/raw/questions-*.parquet", f"set.score.clip.0.model=local-dir:{clip}",
        f"set.score.workers={json.dumps(workers)}", "set.score.chunk_rows=32",
    ]  # fmt: skip


def places(cluster: Nodes, what: str, word: str) -> set[str]:
    """Nodes on which tasks or actors ran whose name has a word."""
    names, key = cluster.names(), "name" if what == "tasks" else "class_name"
    found = [one for one in cluster.seen(what) if word in str(one.get(key)) and str(one.get("node_id")) in names]
    return {names[str(one["node_id"])] for one in found}


def test_curation_decodes_on_plain_nodes_scores_on_fast_ones_and_outlives_the_scorers_node(
    cluster: Nodes, folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    finish(start(cluster, "curate", *curation(tmp_path / "calm", folder, tiny_clip)))
    calm = read_manifest(str(tmp_path / "calm/shards/demo/manifest.json"))
    assert places(cluster, "tasks", "measure_chunk") == {"plain"}
    scored = places(cluster, "actors", "MapWorker")
    assert scored and scored <= {"fast-a", "fast-b"}

    process = start(cluster, "curate", "name=curate-killed", *curation(tmp_path / "out", folder, tiny_clip))
    until(process, lambda: len(list((tmp_path / "out").glob("scores/base-*/commit/*.json"))) >= 3)
    names = cluster.names()
    living = [one for one in cluster.seen("actors") if one["state"] == "ALIVE" and "Map" in str(one["class_name"])]
    victim = next(names[str(one["node_id"])] for one in living)
    assert victim in ("fast-a", "fast-b")
    cluster.kill(victim)
    assert process.poll() is None
    finish(process)
    killed = read_manifest(str(tmp_path / "out/shards/demo/manifest.json"))
    assert killed.digest == calm.digest
    assert (
        killed.totals.rows_in == killed.totals.kept + sum(killed.totals.dropped.values()) and not killed.totals.failed
    )
    assert verify(killed, True, NullProgress()).problems == ()
    cluster.restart(victim)


def test_training_outlives_a_workers_node_and_takes_every_step(
    cluster: Nodes, folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    manifest = _shards(cluster, folder, tiny_clip)
    out = tmp_path / "train"
    process = start(
        cluster, "train", f"set.data.manifest={manifest}", f'argv=["--out","{out}"]', "set.gates=warn",
        f"set.stages={json.dumps([ALIGN])}", "set.checkpoint.every_minutes=0.05", "set.ray.workers=2",
        'set.ray.resources={"accelerator": 1}',
    )  # fmt: skip
    until(process, lambda: list(out.glob("checkpoints/*/*/checkpoint.json")))
    on = places(cluster, "actors", "RayTrainWorker")
    assert on and on <= {"fast-a", "fast-b"}
    victim = sorted(on)[0]
    cluster.kill(victim)
    assert process.poll() is None
    finish(process)
    (report,) = [json.loads(path.read_text()) for path in out.glob("align-*/promoted.json")]
    (diary,) = out.glob("align-*/consumed")
    assert sorted(consumed(diary)) == list(range(report["steps"])) and report["steps"] == ALIGN["steps"]
    assert len(list(diary.glob("*-0of2.jsonl"))) > 1  # the workers were started again
    cluster.restart(victim)


def test_an_evaluation_whose_own_node_dies_is_tried_again_and_is_whole(
    cluster: Nodes, folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    manifest = _shards(cluster, folder, tiny_clip)
    model = build_folder("nano", ["what is it? x is it"] * 50, tmp_path / "nano", 0)
    out = tmp_path / "evaluation"
    words = ["--checkpoint", str(model), "--manifest", manifest, "--out", str(out)]
    process = start(
        cluster, "evaluate", f"argv={json.dumps(words)}", "retries={max: 2, backoff_s: 1}",
        'resources.driver={cpus: 1, resources: {driver: 1}}',
        "set.sources=[{kind: manifest, heldout: 0.5, per_domain: 10, seed: 17}]",
    )  # fmt: skip
    id = until(process, lambda: [job.id for job in cluster.api.list() if job.id.startswith("evaluate")])[0]
    until(process, lambda: "model" in said_by(cluster, id))
    victim = cluster.names()[cluster.api._http.get(f"/api/jobs/{id}").json()["driver_node_id"]]
    cluster.kill(victim)
    assert not (out / "result.json").exists()
    found, said = finish(process)
    assert found["id"].endswith("-2") and "attempt 1 failed" in said
    assert json.loads((out / "result.json").read_text()) and (out / "report.html").is_file()


def _shards(cluster: Nodes, folder: Path, clip: Path) -> str:
    """Shards for the later jobs, made once."""
    if not (folder / "data/shards/demo/manifest.json").is_file():
        finish(start(cluster, "curate", "name=curate-shards", *curation(folder / "data", folder, clip)))
    return str(folder / "data/shards/demo/manifest.json")

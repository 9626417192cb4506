"""Training as users start it, in processes that can be killed, and what two runs of it must have in common."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from tests.integration.raw import environment

from sightloom import storage
from sightloom.training.consumed import consumed

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
STEPS, SAVE_EVERY = 120, 20
_POLL_S = 0.02


@dataclass(frozen=True)
class Run:
    """One run: a single align stage of the nano, in a folder of its own."""

    manifest: str
    out: Path
    mlflow: str
    overrides: tuple[str, ...] = ()
    address: str = "local"
    steps: int = STEPS

    def start(self, fault: dict[str, Any] | None = None, **env: str) -> "subprocess.Popen[str]":
        """Start (or go on with) it; `env` is for the driver and its workers."""
        curriculum = self.out.parent / f"{self.out.name}.yaml"
        if not curriculum.exists():
            import yaml

            whole = yaml.safe_load(NANO.read_text())
            curriculum.parent.mkdir(parents=True, exist_ok=True)
            curriculum.write_text(yaml.safe_dump(whole | {"stages": whole["stages"][:1]}))
        sets = [
            f"data.manifest={self.manifest}", "gates=warn", "defaults.batch.window=64", f"stages.0.steps={self.steps}",
            "stages.0.batch.max_tokens=400", f"checkpoint.every_steps={SAVE_EVERY}", f"tracking.uri={self.mlflow}",
            f"tracking.experiment={self.out.name}", "ray.workers=2", *self.overrides,
        ]  # fmt: skip
        code = "from sightloom.cli import main; main()"
        command = [sys.executable, "-c", code, "train", str(curriculum), "--out", str(self.out), "--json"]
        command += ["--ray", self.address, *(part for pair in sets for part in ("--set", pair))]
        return subprocess.Popen(
            command, env=environment(fault, **env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    @property
    def stage(self) -> Path:
        """The folder of its stage."""
        (folder,) = self.out.glob("align-*")
        return folder

    def attempts(self) -> list[tuple[int, list[int]]]:
        """For each start of the workers: how many they were, and the steps that the first of them began."""
        if not list(self.out.glob("align-*/consumed")):
            return []
        files = sorted((self.stage / "consumed").glob("*-0of*.jsonl"))
        lines = [[line for line in file.read_text().split("\n")[:-1]] for file in files]
        return [
            (int(file.stem.split("of")[1]), [int(json.loads(line)["step"]) for line in part])
            for file, part in zip(files, lines, strict=True)
        ]

    def step(self) -> int:
        """The last step that was begun, -1 before the first."""
        return max((steps[-1] for _, steps in self.attempts() if steps), default=-1)

    def metrics(self) -> dict[str, float]:
        """What the finished stage was measured to be."""
        return dict(storage.read_json(str(self.stage / "promoted.json"))["metrics"])

    def weights(self) -> str:
        """SHA-256 of the exported weights."""
        return storage.sha256_file(self.stage / "model" / "model.safetensors")

    def consumed(self) -> dict[int, list[str]]:
        """Uids by step."""
        return consumed(self.stage / "consumed")

    def assert_one_true_diary(self, status: str = "FINISHED") -> None:
        """One parent and one stage run, with that status, and of every metric one value a step."""
        client = MlflowClient(self.mlflow)
        experiment = client.get_experiment_by_name(self.out.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 2 and {run.info.status for run in runs} == {status}
        for run in runs:
            for key in run.data.metrics:
                steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
                assert sorted(steps) == sorted(set(steps)), (key, steps)
        stage = next(run for run in runs if "mlflow.parentRunId" in run.data.tags)
        if status == "FINISHED":
            last = max(point.step for point in client.get_metric_history(stage.info.run_id, "train/grad_norm"))
            assert last == self.steps


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]", timeout_s: float = 300) -> None:
    """Wait for something that must become true while the process runs."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(_POLL_S)


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL a driver; what it leaves behind ends by itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def train_workers(root: int) -> list[int]:
    """Ray Train workers that descend from a process: other sessions on the machine are not ours to kill."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, pid = (folder / "cmdline").read_text(), int(folder.name)
            while "RayTrainWorker" in name and pid > 1:
                if pid == root:
                    found.append(int(folder.name))
                    break
                pid = int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    return found

"""Which samples a stage learnt from, step by step: each worker's own account of it.

FOLDER/<attempt>-<rank>of<world>.jsonl      lines {"step": 7, "uids": [...]}
Every start of the workers opens new files; of a step that was done twice the later attempt counts.
"""

import json
import re
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO

from sightloom.training.parallel import Workers

_NAME: Final = re.compile(r"^(\d+)-(\d+)of(\d+)\.jsonl$")


class ConsumptionLog:
    """One worker's account; all workers open it together."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = max((_attempt(file) for file in folder.iterdir()), default=-1)
        attempt = max(workers.gather(earlier)) + 1  # a worker looks before any has opened its file
        self._file: TextIO = (folder / f"{attempt:04d}-{workers.rank}of{workers.world}.jsonl").open("x")

    def add(self, step: int, uids: list[str]) -> None:
        """Note what this worker takes at a step; the line is on its way to the disk when the step begins."""
        self._file.write(json.dumps({"step": step, "uids": uids}) + "\n")
        self._file.flush()

    def __enter__(self) -> "ConsumptionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def consumed(folder: Path) -> dict[int, list[str]]:
    """The uids of every step, sorted: those of the last attempt at it of which all workers tell."""
    told: dict[tuple[int, int], dict[int, list[str]]] = {}
    worlds: dict[int, int] = {}
    for file in folder.iterdir():
        match = _NAME.match(file.name)
        if match is None:
            continue
        attempt, rank = int(match[1]), int(match[2])
        worlds[attempt] = int(match[3])
        for line in file.read_text().splitlines():
            if not line.endswith("}"):
                continue  # cut where the worker was killed
            entry = json.loads(line)
            told.setdefault((int(entry["step"]), attempt), {})[rank] = entry["uids"]
    steps: dict[int, list[str]] = {}
    for (step, attempt), parts in sorted(told.items()):
        if len(parts) == worlds[attempt]:
            steps[step] = sorted(uid for uids in parts.values() for uid in uids)
    return steps


def _attempt(file: Path) -> int:
    match = _NAME.match(file.name)
    return int(match[1]) if match is not None else -1

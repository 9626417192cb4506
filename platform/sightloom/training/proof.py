"""Proof that an export is a model for everyone: another process, without Sightloom, answers its probes."""

import contextlib
import json
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from sightloom.errors import SightloomError
from sightloom.training import outsider


class Outsider:
    """The process that runs `outsider.py`; it imports transformers while others train."""

    def __init__(self) -> None:
        # -I: no PYTHONPATH, no user site, nothing of the caller's
        command = [sys.executable, "-I", str(Path(outsider.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def prove(self, folder: Path) -> float:
        """Have an export held against its probes; returns the largest drift of a logit, as a share of the largest.

        Raises:
            SightloomError: it does not load, or answers otherwise.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        with self._lock:
            answer = ""
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{folder.absolute()}\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
        if not answer:
            raise SightloomError(f"the process that was to load the model in '{folder}' ended", "run the command again")
        result = json.loads(answer)
        if result["problem"] is not None:
            raise SightloomError(
                f"the model in '{folder}' is not the same one for transformers alone: {result['problem']}",
                "it is not promoted; its folder is kept",
            )
        return float(result["drift"])

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


@lru_cache(maxsize=1)
def _kept() -> list[Outsider]:
    return []


def the_outsider() -> Outsider:
    """The one of this process, started at the first call; it ends with this process, whose pipe it reads."""
    kept = _kept()
    if not kept or not kept[0].alive:
        kept[:] = [Outsider()]
    return kept[0]

"""Scores answers in a process of its own, so that a scorer that hangs or crashes costs one answer, never a run.

A Python function cannot be stopped from outside, and one that loops in C holds its process; a process can be killed.
"""

import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sightloom
from sightloom.objectives.rewards import Reward
from sightloom.records import Answer

LIMIT_S: Final = 10.0  # for one answer
_START_S: Final = 120.0  # a new process imports first, on a machine that may be busy


class Scorers:
    """The scoring process, started at the first answer and again after each that it did not survive.

    Args:
        program: what is started; it speaks as `sightloom.training.scorer` does.
    """

    def __init__(self, limit_s: float = LIMIT_S, program: Sequence[str] = ("-m", "sightloom.training.scorer")) -> None:
        self._limit_s, self._program = limit_s, program
        self._process: subprocess.Popen[bytes] | None = None
        self._fresh = True

    def score(self, content: str, answer: Answer) -> Reward:
        """The reward of one answer; NaN with the reason where the scorer failed, died or took too long."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        request = json.dumps({"content": content, "answer": answer.to_json()}).encode() + b"\n"
        limit_s = _START_S if self._fresh else self._limit_s
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = _line(process, limit_s)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            return Reward(math.nan, f"no score within {limit_s:g} s")
        if not line.endswith(b"\n"):
            self.close()
            return Reward(math.nan, f"the scorer died with code {process.returncode}")
        self._fresh = False
        reply = json.loads(line)
        return Reward(math.nan if reply["value"] is None else float(reply["value"]), str(reply["detail"]))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        home = str(Path(sightloom.__file__).parents[1])
        paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, *self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._fresh = True
        return self._process


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next line; less where the process ended. Raises TimeoutError."""
    assert process.stdout is not None
    deadline = time.monotonic() + limit_s
    got = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not got.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                return got
            got += piece
    return got

"""A process that answers one JSON object a line with another, and that may be killed.

A Python function cannot be stopped from outside, and one that loops in C holds its process; a process can be killed.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sightloom


class ChildLost(Exception):
    """The process died or took too long; it is ended. The message says which."""


class Child:
    """The process, started at once.

    Args:
        command: the whole command line; `sightloom` can be imported in it.
        environment: beside this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        home = str(Path(sightloom.__file__).parents[1])
        paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Its reply to one request.

        Raises:
            ChildLost: it died, or did not reply in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(limit_s)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            raise ChildLost(f"took longer than {limit_s:g} s") from None
        if not line.endswith(b"\n"):
            self.close()
            raise ChildLost(f"died with code {self._process.returncode}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _line(self, limit_s: float) -> bytes:
        """The next line; less where the process ended. Raises TimeoutError."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        got = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not got.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    return got
                got += piece
        return got

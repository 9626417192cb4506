"""A supervised child process with a unix socket in a private folder: started, watched, ended with all it started."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sightloom.errors import SightloomError
from sightloom.serving.engines import guard

LOG_LINES: Final = 50
LONGEST_SOCKET_PATH: Final = 107  # bytes, Linux's sun_path without its closing zero


class Child:
    """One run of a command under the guard.

    The guard holds the child in a process group of its own and ends that group when this process closes the lease or
    dies. `folder` is of mode 0700 and goes with the child.

    Args:
        command: with the placeholder `{socket}` where the socket's path belongs.
        environment: the child's whole environment; `TMPDIR` is set to the folder.
        grace_s: between the polite signal and the other one.
        nice: above 0 the child gives way to this process and others, 19 being the most.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], grace_s: float, nice: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sl-engine-"))
        self.socket = self.folder / "e.sock"
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            os.rmdir(self.folder)
            raise SightloomError(
                f"the path of the engine's socket '{self.socket}' is longer than {LONGEST_SOCKET_PATH} bytes",
                "let TMPDIR be a shorter path",
            )
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self._ended = threading.Event()
        lease, self._lease = os.pipe()
        filled = [part.replace("{socket}", str(self.socket)) for part in command]
        try:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    guard.__file__,
                    str(lease),
                    f"{grace_s:g}",
                    str(self.folder),
                    str(nice),
                    *filled,
                ],
                env={**environment, "TMPDIR": str(self.folder)},
                pass_fds=(lease,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError:
            os.close(self._lease)
            os.rmdir(self.folder)
            raise
        finally:
            os.close(lease)
        threading.Thread(target=self._read, name="engine-log", daemon=True).start()

    @property
    def status(self) -> int | None:
        """The exit status once all of the group has ended; above 128 a signal's number is added to it."""
        return self._guard.returncode if self._ended.is_set() else None

    @property
    def log(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.lines)

    def close(self) -> None:
        """Ask the guard to end the group; returns at once."""
        with contextlib.suppress(OSError):
            os.close(self._lease)
            self._lease = -1

    async def wait(self, timeout_s: float) -> bool:
        """Wait until all of the group has ended; whether it has."""
        until = time.monotonic() + timeout_s
        while not self._ended.is_set() and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._ended.is_set()

    def _read(self) -> None:
        assert self._guard.stdout is not None
        for line in self._guard.stdout:
            self.lines.append(line.rstrip())
        self._guard.wait()
        self._ended.set()

"""MLflow's own server, which can go away and come back."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx


class Server:
    """MLflow's own server, on a sqlite file unless another database is named, which can go away and come back."""

    def __init__(self, folder: Path, database: str = "", words: Sequence[str] = (), **env: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._folder, self._words = folder, (*words, "--backend-store-uri", database or f"sqlite:///{folder}/server.db")
        self._env = {**os.environ, **env}
        self.uri = f"http://127.0.0.1:{self._port}"
        self.up()

    def up(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--artifacts-destination", f"{self._folder}/kept", *self._words]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log, start_new_session=True)
        for _ in range(240):
            try:
                httpx.get(f"{self.uri}/health", timeout=2).raise_for_status()
                return
            except httpx.HTTPError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                time.sleep(0.25)

    def down(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

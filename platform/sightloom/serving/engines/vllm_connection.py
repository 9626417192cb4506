"""The connection to one run of a vLLM server: spawned and waited for, or at a URL; probed; closed with all it holds."""

import asyncio
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from sightloom.errors import SightloomError, UserMistake
from sightloom.serving.engines.child import Child
from sightloom.serving.engines.settings import VllmSettings
from sightloom.serving.engines.vllm_server import command, environment, find_python, has_gpu
from sightloom.serving.engines.vllm_wire import Vocabulary

CHAT: Final = "v1/chat/completions"
# On a CPU vLLM computes and spins on all cores; what this process does for a request takes milliseconds and goes first.
ON_A_CPU_NICE: Final = 10


class Connection:
    """An HTTP session to a server, and the server's process where it is ours.

    Raises:
        UserMistake: there is no vLLM here, or no such key file.
    """

    def __init__(self, folder: Path, settings: VllmSettings, words: Vocabulary, window: int) -> None:
        self._settings = settings
        self.child: Child | None = None
        if settings.url is not None:
            key = _key_in(settings.key_file) if settings.key_file else ""
            self._http = _session(aiohttp.TCPConnector(limit=0), f"{settings.url.rstrip('/')}/", key, settings.stall_s)
            return
        key = secrets.token_urlsafe(32)
        line = command(folder.resolve(), settings, words, window, find_python(settings))
        nice = 0 if has_gpu(os.environ) else ON_A_CPU_NICE
        self.child = Child(line, environment(settings, key, os.environ), settings.stop_grace_s, nice)
        connector = aiohttp.UnixConnector(path=str(self.child.socket), limit=0)
        self._http = _session(connector, "http://engine/", key, settings.stall_s)

    @property
    def log(self) -> str:
        """What the server said last."""
        return self.child.log if self.child is not None else "(its log is where its operator keeps it)"

    @property
    def ended(self) -> bool:
        """Whether the server's process is known to have ended."""
        return self.child is not None and self.child.status is not None

    async def ready(self) -> None:
        """Wait until the server answers.

        Raises:
            UserMistake: none answers at the URL.
            SightloomError: ours ended or took too long; what it said last is in the message.
        """
        if self.child is None:
            if not await self.healthy():
                raise UserMistake(
                    f"no vLLM server answers at '{self._settings.url}'", "start it, or correct the address"
                )
            return
        until = time.monotonic() + self._settings.start_timeout_s
        while not self.ended and time.monotonic() < until:
            if await self.healthy():
                return
            await asyncio.sleep(0.25)
        why = f"ended with status {self.child.status}" if self.ended else "was not ready in time"
        raise SightloomError(f"vLLM {why}; it said last:\n{self.log}", "the lines above are from vLLM itself")

    async def healthy(self) -> bool:
        """Whether it says that it can answer."""
        timeout = aiohttp.ClientTimeout(total=self._settings.probe_timeout_s)
        try:
            async with self._http.get("health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def metrics(self) -> dict[str, float]:
        """The server's metrics, each the sum of its series; empty where it does not say."""
        found: dict[str, float] = {}
        try:
            async with self._http.get("metrics", timeout=aiohttp.ClientTimeout(total=10)) as response:
                for line in (await response.text()).splitlines():
                    if line and not line.startswith("#"):
                        series, _, value = line.rpartition(" ")
                        name = series.partition("{")[0]
                        found[name] = found.get(name, 0.0) + float(value)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return {}
        return found

    async def chat(self, body: Mapping[str, Any], traceparent: str = "") -> aiohttp.ClientResponse:
        """Ask; the caller closes the response."""
        return await self._http.post(CHAT, json=body, headers={"traceparent": traceparent} if traceparent else None)

    async def close(self) -> None:
        """End the server if it is ours, which fails what is in flight, then close the session.

        In this order: a reader of a session that is closed under it would wait for ever (aiohttp 3).
        """
        if self.child is not None:
            self.child.close()
            await self.child.wait(2 * self._settings.stop_grace_s + 10)
        await self._http.close()


def _key_in(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserMistake(f"the key file '{file}' cannot be read: {error.strerror}", "correct 'key_file'") from error


def _session(connector: aiohttp.BaseConnector, base: str, key: str, stall_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        base,
        connector=connector,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=2 * stall_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=2**20,
    )

"""robots.txt, asked once a host and day for a whole run: what was said is kept beside the downloads."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections import Counter
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

import aiohttp

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.errors import UserMistake

MAX_BYTES = 500_000
MAX_FAILURES = 3  # to be told a host's rules, in a task: all its URLs wait for each


class Robots:
    """The rules of hosts; `folder` keeps them for other tasks of the day."""

    def __init__(self, folder: str, day: datetime.date) -> None:
        self._folder = storage.join(folder, day.isoformat())
        self._rules: dict[str, asyncio.Task[RobotFileParser | None]] = {}
        self._failures = Counter[str]()

    async def allows(self, session: aiohttp.ClientSession, agent: str, url: str) -> bool:
        """Whether a host lets this agent fetch a URL now.

        Errors of the connection are raised; the next call asks again, until three in all have failed.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._rules:
            self._rules[origin] = asyncio.create_task(self._read(session, origin))
        asked = self._rules[origin]
        try:
            rules = await asked
        except (aiohttp.ClientError, OSError, ValueError):  # a timeout is an OSError
            if self._rules.get(origin) is asked and self._failures[origin] < MAX_FAILURES - 1:
                del self._rules[origin]
                self._failures[origin] += 1
            raise
        return rules is not None and rules.can_fetch(agent, url)

    async def _read(self, session: aiohttp.ClientSession, origin: str) -> RobotFileParser | None:
        """Return a host's rules; None when it cannot say them now (5xx)."""
        rules = RobotFileParser()
        uri = storage.join(self._folder, hashlib.sha256(origin.encode()).hexdigest()[:24] + ".json")
        text = await asyncio.to_thread(_known, uri)
        if text is None:
            async with session.get(origin + "/robots.txt") as response:
                if response.status >= 500 or response.status == 429:
                    return None
                data = await response.content.read(MAX_BYTES) if response.status == 200 else b""
            text = data.decode("utf-8", "replace")
            await asyncio.to_thread(storage.write, uri, canonical_json({"origin": origin, "robots": text}))
        rules.parse(text.splitlines())
        return rules


def _known(uri: str) -> str | None:
    try:
        return str(storage.read_json(uri)["robots"])
    except UserMistake:
        return None

"""A polite client: it asks robots.txt, keeps to a host's limit, waits when told to, and never reaches private networks.

The address is checked where each connection is made, so literals, redirects and changing DNS answers all meet it.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import aiohttp

from sightloom import __version__
from sightloom.address import blocked_by, guarded_socket_factory
from sightloom.data.decode import image_format
from sightloom.data.fetch.robots import Robots
from sightloom.data.fetch.slots import Leases
from sightloom.data.sources.config import FetchConfig

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 120.0
FIRST_WAIT_S = 0.5
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
RETRIED = frozenset({429, 500, 502, 503, 504})
BLOCK = 1 << 16
OK = "ok"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one URL."""

    status: str
    detail: str = ""
    data: bytes | None = None


class Client:
    """Fetches images by URL."""

    def __init__(self, config: FetchConfig, leases: Leases, robots: Robots | None) -> None:
        self.config, self.leases, self.robots = config, leases, robots
        self.agent = f"sightloom/{__version__} (+{config.contact})"

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(
            limit=self.config.at_once,
            socket_factory=guarded_socket_factory(self.config.allow_networks),
        )
        timeout = aiohttp.ClientTimeout(total=self.config.total_s, sock_connect=self.config.connect_s)
        self.session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers={"User-Agent": self.agent, "Accept-Encoding": "identity"},
            trust_env=False,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def fetch(self, url: object, sha256: object = None) -> Outcome:
        """Fetch one URL, trying again what may pass.

        Args:
            url: of an image.
            sha256: what the list says its bytes' SHA-256 is (64 hex digits), if it says so.
        """
        if not isinstance(url, str) or not url:
            return Outcome("fetch_scheme", "no URL")
        outcome = Outcome("fetch_timeout")
        for attempt in range(self.config.tries):
            outcome, wait = await self._attempt(url)
            if wait is None or attempt + 1 == self.config.tries:
                break
            await asyncio.sleep(wait or FIRST_WAIT_S * 2**attempt * (0.5 + random.random()))
        if outcome.data is not None and isinstance(sha256, str) and sha256:
            found = hashlib.sha256(outcome.data).hexdigest()
            if found != sha256.lower():
                return Outcome("fetch_hash_mismatch", f"its SHA-256 is {found}")
        return outcome

    async def _attempt(self, url: str) -> tuple[Outcome, float | None]:
        """Return the outcome and, if another try makes sense, the seconds to wait (0 = the usual back-off)."""
        try:
            return await self._follow(url)
        except TimeoutError as error:
            return Outcome("fetch_timeout", str(error)), 0.0
        except (aiohttp.ClientError, OSError) as error:
            if blocked_by(error):
                return Outcome("fetch_blocked_address", str(error)), None
            if isinstance(error, aiohttp.InvalidURL):
                return Outcome("fetch_scheme", str(error)), None
            is_dns = isinstance(error, aiohttp.ClientConnectorDNSError)
            return Outcome("fetch_dns" if is_dns else "fetch_connection", str(error)), 0.0
        except ValueError as error:
            return Outcome("fetch_scheme", str(error)), None

    async def _follow(self, url: str) -> tuple[Outcome, float | None]:
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or parts.username is not None or not parts.hostname:
                return Outcome("fetch_scheme", url[:200]), None
            if self.robots is not None and not await self.robots.allows(self.session, self.agent, url):
                return Outcome("fetch_robots"), None
            await self.leases.acquire(parts.netloc)
            try:
                async with self.session.get(url, allow_redirects=False) as response:
                    if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                        url = urljoin(url, response.headers["Location"])
                        continue
                    return await self._read(response)
            finally:
                self.leases.release(parts.netloc)
        return Outcome("fetch_redirects", f"more than {MAX_REDIRECTS}"), None

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[Outcome, float | None]:
        if response.status != 200:
            wait = retry_after(response.headers.get("Retry-After", ""), time.time())
            return Outcome(f"fetch_http_{response.status}"), wait if response.status in RETRIED else None
        if opted_out(response.headers.getall("X-Robots-Tag", [])):
            return Outcome("fetch_opt_out", ", ".join(response.headers.getall("X-Robots-Tag"))[:200]), None
        limit = int(self.config.max_mb * 1e6)
        if (response.content_length or 0) > limit:
            return Outcome("fetch_too_large", f"{response.content_length} bytes"), None
        content = bytearray()
        async for block in response.content.iter_chunked(BLOCK):
            content += block
            if len(content) > limit:
                return Outcome("fetch_too_large", f"over {self.config.max_mb:g} MB"), None
        if image_format(bytes(content[:16])) is None:
            return Outcome("fetch_not_image", f"its first bytes are {bytes(content[:8])!r}"), None
        return Outcome(OK, data=bytes(content)), None


def opted_out(tags: Sequence[str]) -> bool:
    """Whether `X-Robots-Tag` headers ask not to be used so; a directive for one crawler counts for all."""
    words = ",".join(tags).lower().replace(" ", "").split(",")
    return any(word.rsplit(":", 1)[-1] in OPT_OUT for word in words)


def retry_after(value: str, now: float) -> float:
    """Return the seconds that a `Retry-After` header asks for, at most 120; 0 where it says nothing usable."""
    if value.strip().isdigit():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return min(max(0.0, moment.timestamp() - now), MAX_RETRY_AFTER_S)

"""The media guard: pictures come in within budgets, whole, still and upright, or not at all (serving.md §5).

The order is count, sniff, header, budgets, and only then a full decode: what is refused has cost nearly nothing.
"""

import asyncio
import base64
import binascii
import io
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from PIL import Image, ImageOps

from sightloom.address import blocked_by, guarded_socket_factory
from sightloom.config import Frozen
from sightloom.serving.errors import ApiError, invalid
from sightloom.serving.limits import SHORTEST_WAIT_S

_SIGNATURES: Final = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_FORMATS: Final = "PNG, JPEG, WEBP, GIF and BMP"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
LOW_DETAIL_PX: Final = 512
MIN_SIDE_PX: Final = 2
THREADS: Final = 4


class MediaLimits(Frozen):
    """Budgets of one request's pictures."""

    max_images: int = 8
    image_bytes: int = 8 * 2**20
    total_bytes: int = 16 * 2**20
    image_pixels: int = 20_000_000
    total_pixels: int = 64_000_000
    max_ratio: float = 200.0  # the Qwen processor raises above
    decode_s: float = 5.0
    allow_domains: tuple[str, ...] = ()
    allow_http: bool = False
    allow_ports: tuple[int, ...] = (443, 80)
    allow_networks: tuple[str, ...] = ()
    connect_s: float = 3.0
    fetch_s: float = 10.0
    max_redirects: int = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture as the request names it; `param` is its path in the request."""

    url: str
    detail: str
    param: str


class MediaGuard:
    """Loads the pictures of requests; owns its decoding threads and, if domains are allowed, an HTTP session."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="media")
        self._places = asyncio.Semaphore(THREADS)
        self._session: aiohttp.ClientSession | None = None

    async def load(self, references: Sequence[Reference], max_images: int | None = None) -> list[bytes]:
        """Fetch, check and normalise pictures: encoded, single frame, upright, RGB.

        Args:
            max_images: how many are taken, where that is not the chat's bound.

        Raises:
            ApiError: 400 or 413, with the path of the picture that is wrong.
        """
        limits = self._limits
        most = limits.max_images if max_images is None else max_images
        if len(references) > most:
            raise invalid(f"{len(references)} pictures; at most {most} are taken", references[most].param)
        encoded: list[bytes] = []
        for reference in references:
            room = min(limits.image_bytes, limits.total_bytes - sum(map(len, encoded)))
            if reference.url[:5].lower() == "data:":
                encoded.append(_from_data_url(reference, room))
            else:
                encoded.append(await self._fetch(reference, room))
        pixels = 0
        for data, reference in zip(encoded, references, strict=True):
            pixels += _check_header(data, reference, limits)
            if pixels > limits.total_pixels:
                raise _too_large(f"the pictures have more than {limits.total_pixels} pixels together", reference.param)
        return [await self._decode(data, reference) for data, reference in zip(encoded, references, strict=True)]

    async def _decode(self, data: bytes, reference: Reference) -> bytes:
        """Decode in a thread; its seconds count from when one is free."""
        seconds, loop = self._limits.decode_s, asyncio.get_running_loop()
        try:
            await asyncio.wait_for(self._places.acquire(), seconds)
        except TimeoutError as error:
            why = "all threads that decode pictures are busy"
            raise ApiError(429, "engine_overloaded", why, retry_after_s=SHORTEST_WAIT_S) from error
        work = self._threads.submit(normalise, data, reference)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._places.release))  # a slow one still has it
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), seconds)
        except TimeoutError as error:
            raise _broken(f"decoding took more than {seconds:g} s", reference) from error

    async def close(self) -> None:
        """Give threads and connections back."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, reference: Reference, room: int) -> bytes:
        """Read a picture from an allowed domain; every redirect and every address is checked again."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(socket_factory=guarded_socket_factory(self._limits.allow_networks)),
                timeout=aiohttp.ClientTimeout(total=self._limits.fetch_s, sock_connect=self._limits.connect_s),
                headers={"accept-encoding": "identity", "user-agent": "sightloom"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        url = reference.url
        try:
            async with asyncio.timeout(self._limits.fetch_s):
                for _ in range(self._limits.max_redirects + 1):
                    _check_address(url, reference, self._limits)
                    async with self._session.get(url, allow_redirects=False) as response:
                        if response.status in _REDIRECTS and "location" in response.headers:
                            url = urljoin(url, response.headers["location"])
                            continue
                        if response.status != 200:
                            raise _not_fetched(f"the server answered {response.status}", reference)
                        data = bytearray()
                        async for chunk in response.content.iter_chunked(65536):
                            data += chunk
                            if len(data) > room:
                                raise _too_large(f"the picture has more than {room} bytes", reference.param)
                        return bytes(data)
        except TimeoutError as error:
            raise _not_fetched("it took too long", reference) from error
        except (aiohttp.ClientError, ValueError) as error:
            if blocked_by(error):
                raise _not_allowed("its address may not be reached", reference) from error
            raise _not_fetched("the server could not be reached", reference) from error
        raise _not_fetched(f"more than {self._limits.max_redirects} redirects", reference)


def normalise(data: bytes, reference: Reference) -> bytes:
    """Decode a picture to the last byte; a plain RGB one passes unchanged, any other becomes an upright RGB PNG.

    Raises:
        ApiError: 400 `invalid_image`: the picture is truncated or broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            shrink = reference.detail == "low" and max(image.size) > LOW_DETAIL_PX
            if image.format == "JPEG" and image.mode == "RGB" and not _has_turn(image) and not shrink:
                image.draft("L", (1, 1))  # its pixels are not wanted: every byte is read, at half the cost
                image.load()
                return data
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a decoder makes of foreign bytes: struct.error, zlib.error, a warning
        raise _broken("it is truncated or damaged", reference) from error
    plain = image.format != "MPO"  # whose other pictures nobody has looked at
    if plain and upright.mode == "RGB" and upright.size == image.size and not _has_turn(image) and not shrink:
        return data
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    upright = upright.convert("RGB")
    if shrink:
        upright.thumbnail((LOW_DETAIL_PX, LOW_DETAIL_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _from_data_url(reference: Reference, room: int) -> bytes:
    head, comma, payload = reference.url[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise invalid("a data URL must have the form data:image/png;base64,…", reference.param, "invalid_image")
    if len(payload) > 4 * math.ceil(room / 3):
        raise _too_large(f"the picture has more than {room} bytes", reference.param)
    try:
        data = base64.b64decode(payload.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise invalid("the picture is not valid base64", reference.param, "invalid_image") from error
    if len(data) > room:
        raise _too_large(f"the picture has more than {room} bytes", reference.param)
    return data


def _check_header(data: bytes, reference: Reference, limits: MediaLimits) -> int:
    """Pixels of a picture, read from its header alone; its format is found by content, whatever the URL says."""
    kind = next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None:
        raise _broken(f"its content is no picture of a known format ({_FORMATS})", reference)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=(kind,))
            width, height = image.size
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise _too_large(f"the picture has more than {limits.image_pixels} pixels", reference.param) from error
    except Exception as error:  # whatever a decoder makes of foreign bytes
        raise _broken(f"its {kind} header is damaged", reference) from error
    if width * height > limits.image_pixels:
        raise _too_large(f"the picture has {width}x{height} pixels; at most {limits.image_pixels}", reference.param)
    if min(width, height) < MIN_SIDE_PX or max(width, height) > limits.max_ratio * min(width, height):
        raise _broken(f"{width}x{height} px: a side is below {MIN_SIDE_PX} px or the ratio too large", reference)
    if animated:
        raise _broken("it is animated; send the frame that is meant", reference)
    return width * height


def _check_address(url: str, reference: Reference, limits: MediaLimits) -> None:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError as error:
        raise _not_allowed("it is no valid address", reference) from error
    schemes = ("https", "http") if limits.allow_http else ("https",)
    if parts.scheme not in schemes:
        raise _not_allowed(f"only data: URLs{' and ' + '/'.join(schemes) if limits.allow_domains else ''}", reference)
    if parts.username is not None or parts.password is not None:
        raise _not_allowed("credentials do not belong into an address", reference)
    if not any(host == name.lower() or host.endswith(f".{name.lower()}") for name in limits.allow_domains):
        raise _not_allowed("its domain is not one that this endpoint fetches from; send a data: URL", reference)
    if port is not None and port not in limits.allow_ports:
        raise _not_allowed("its port is not one that this endpoint fetches from", reference)


def _has_turn(image: Image.Image) -> bool:
    return image.getexif().get(0x0112, 1) != 1


def _broken(why: str, reference: Reference) -> ApiError:
    return invalid(f"the picture cannot be used: {why}", reference.param, "invalid_image")


def _not_allowed(why: str, reference: Reference) -> ApiError:
    return invalid(f"the picture's address is not allowed: {why}", reference.param, "media_url_not_allowed")


def _not_fetched(why: str, reference: Reference) -> ApiError:
    return invalid(f"the picture could not be fetched: {why}", reference.param, "media_fetch_failed")


def _too_large(why: str, param: str) -> ApiError:
    return ApiError(413, "image_too_large", why, param)

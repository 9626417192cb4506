"""The ASGI gate before the app: request ids, keys, quotas, and the headers that every answer carries, errors included.

It stands in the app and not in a proxy, because a replica may be reached beside the proxy.
"""

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightloom.serving.auth import ANYBODY, KeyEntry, KeyRing, require
from sightloom.serving.errors import ApiError
from sightloom.serving.limits import Limits, Quota
from sightloom.serving.meters import Meters
from sightloom.serving.seen import Facts, tell
from sightloom.serving.traces import Traces

_log = logging.getLogger(__name__)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CSP: Final = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_FIXED_HEADERS: Final = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(slots=True)
class Visit:
    """One request's passage; the app adds headers, facts and, at the end, the tokens that it used.

    `key_id`: empty until the key was found to be valid. `traceparent`: what engines are to hang their spans below; the
    client's own where this endpoint sends no traces.
    """

    request_id: str
    key: KeyEntry
    headers: dict[str, str] = field(default_factory=dict)
    num_tokens: int = 0
    facts: Facts = field(default_factory=Facts)
    status: int = 0
    traceparent: str = ""
    key_id: str = ""
    quota: Quota | None = None
    reserved: int = 0  # tokens

    def reserve(self, num_tokens: int) -> None:
        """Take the most that it may use from its key's quota, until the true usage is known.

        Raises:
            ApiError: 429 `rate_limit_exceeded`.
        """
        if self.quota is not None:
            self.reserved += self.quota.reserve(num_tokens)
            self.headers.update(self.quota.headers())


class Gate:
    """Lets a request in under `/v1/` with a valid key and within its quota; everything else needs none."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing, limits: Limits, meters: Meters, traces: Traces | None = None
    ) -> None:
        self._app = app
        self._traces = traces
        self._meters = meters
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        asked_id = given.get(b"x-request-id", "")
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else secrets.token_hex(12)
        visit = Visit(request_id, ANYBODY)
        scope.setdefault("state", {})["visit"] = visit

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                extra = {"x-request-id": visit.request_id, **_FIXED_HEADERS, **visit.headers}
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode("latin-1")) for name, value in extra.items()),
                ]
            await send(message)

        if not scope["path"].startswith("/v1/"):
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:  # noqa: BLE001  it is logged, counted and answered
                await self._fault(visit, send_with_headers)
            return
        began = time.monotonic()
        visit.traceparent = given.get(b"traceparent", "")
        trace = None
        if self._traces is not None:
            trace = self._traces.begin(f"{scope['method']} {scope['path']}", visit.traceparent)
            visit.traceparent = trace.traceparent
        try:
            await self._enter(visit, given, scope, receive, send_with_headers)
        except ClientDisconnect:  # while it sent its body; nobody reads an answer
            visit.facts.cancelled = "upload"
        except Exception:  # noqa: BLE001
            await self._fault(visit, send_with_headers)
        finally:
            seconds, status = time.monotonic() - began, visit.status or 499
            tell(self._meters, visit.facts, visit.request_id, visit.key_id, status, seconds)
            if self._traces is not None and trace is not None:
                self._traces.end(trace, visit.facts, visit.request_id, status)

    async def _fault(self, visit: Visit, send_with_headers: Send) -> None:
        """Answer what failed by our own fault, in an `except` clause: the framework's 500 would bypass this gate."""
        _log.exception("request %s failed", visit.request_id)
        failure = ApiError(500, "internal_error", "the request failed inside the endpoint")
        visit.facts.failed(failure)
        if visit.status:  # the answer has begun: the connection is cut
            raise
        await send_error(failure, send_with_headers)

    async def _enter(
        self, visit: Visit, given: dict[bytes, str], scope: Scope, receive: Receive, send_with_headers: Send
    ) -> None:
        began = time.monotonic()
        try:
            visit.key = self._keys.identify(given.get(b"authorization"))
            visit.key_id = visit.key.id
            require(visit.key, "infer")
            quota = visit.quota = self._limits.enter(visit.key)
            visit.facts.auth_s = time.monotonic() - began
        except ApiError as error:
            visit.facts.failed(error)
            if visit.key_id:
                visit.headers.update(self._limits.headers(visit.key))
            await send_error(error, send_with_headers)
            return
        try:
            visit.headers.update(quota.headers())
            await self._app(scope, receive, send_with_headers)
        finally:
            self._limits.leave(quota, visit.num_tokens, visit.reserved)


async def send_error(error: ApiError, send: Any) -> None:
    """Answer with an error, below any framework."""
    body = json.dumps(error.body, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

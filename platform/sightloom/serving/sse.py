"""Server-sent events: chunks, keep-alives, errors after the first byte, and always a `[DONE]` (serving.md §2)."""

import json
from typing import Any, Final

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b":keep-alive\n\n"
HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

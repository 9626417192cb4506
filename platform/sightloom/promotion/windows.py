"""The rows that routers send, kept while a canary needs them. What is lost only delays: nothing else hangs on it."""

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from sightloom.serving.observe import Row, total

_KEEP_S: Final = 24 * 3600.0
_KEEP_ROWS: Final = 50_000


class Windows:
    """Rows by time; safe between threads."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, Row]] = deque(maxlen=_KEEP_ROWS)
        self._lock = threading.Lock()

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows as they come."""
        now = time.monotonic()
        with self._lock:
            self._rows.extend((now, row) for row in rows)
            while self._rows and self._rows[0][0] < now - _KEEP_S:
                self._rows.popleft()

    def of(self, model: str, version: int, generation: int, shadow: bool) -> Row:
        """What was seen of a version by routers of this generation or a newer one."""
        with self._lock:
            rows = [row for _, row in self._rows]
        chosen = (
            row
            for row in rows
            if (row.model, row.version, row.shadow) == (model, version, shadow) and row.generation >= generation
        )
        return total(chosen, model, version)

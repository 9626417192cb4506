"""Calls to a service that may be away: made in order by one thread, and again until they pass."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

_log = logging.getLogger(__name__)
_FIRST_WAIT_S: Final = 0.5
_LAST_WAIT_S: Final = 15.0
_WARN_EVERY_S: Final = 60.0
_PROMPT_S: Final = 2.0  # what a call waits for, before it is left to the thread
_ASK_AGAIN_S: Final = 2.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Letter:
    """A call with a few words about it and a size for the count of what is lost."""

    call: Callable[[], object]
    what: str
    size: int = 1


class Outbox:
    """Letters to one service.

    Args:
        service: its name, for warnings.
        away: whether a failure may pass by itself; a letter that is refused for another reason is dropped and counted.
        most: units (`Letter.size`) that may wait; beyond it the oldest go first and are counted.
    """

    def __init__(self, service: str, away: Callable[[Exception], bool], most: int) -> None:
        self._service, self._away, self._most = service, away, most
        self._letters: deque[Letter] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._slow = False
        self.lost = 0
        self.failures = 0

    def put(self, letter: Letter) -> None:
        """Hand a letter over; returns at once."""
        with self._changed:
            self._letters.append(letter)
            waiting = sum(each.size for each in self._letters)
            while waiting > self._most and len(self._letters) > 1:
                # the first one is perhaps being sent
                oldest = self._letters[1]
                del self._letters[1]
                waiting -= oldest.size
                self.lost += oldest.size
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def send(self, call: Callable[[], object], what: str, size: int = 1) -> None:
        """Hand a call over and wait a moment for it to be made, unless the service is slow already."""
        self.put(Letter(call, what, size))
        with self._changed:
            if not self._slow:
                self._slow = not self._changed.wait_for(lambda: not self._letters, _PROMPT_S)

    def ask(self, call: Callable[[], T], patience_s: float) -> T:
        """The answer to a call, for which a service that is away is waited for; what waits here goes first.

        Raises whatever the call raises when it is refused, or when the patience is over.
        """
        end = time.monotonic() + patience_s
        self.drain(patience_s)
        while True:
            try:
                return call()
            except Exception as error:
                if not self._away(error) or time.monotonic() + _ASK_AGAIN_S > end:
                    raise
                _log.warning("%s does not answer and is asked again: %s", self._service, error)
                time.sleep(_ASK_AGAIN_S)

    def drain(self, timeout_s: float) -> int:
        """Wait, however slow it is; returns how much is left unsent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._letters, timeout_s)
            return sum(letter.size for letter in self._letters)

    def _send(self) -> None:
        wait_s, warned = _FIRST_WAIT_S, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._letters))
                letter = self._letters[0]
            try:
                letter.call()
            except Exception as error:  # noqa: BLE001  every client has its own; the two kinds are told apart here
                if self._away(error):
                    self.failures += 1
                    if time.monotonic() - warned > _WARN_EVERY_S or not warned:
                        warned = time.monotonic()
                        _log.warning("%s is away, %s is kept for later: %s", self._service, letter.what, error)
                    time.sleep(wait_s)
                    wait_s = min(wait_s * 2, _LAST_WAIT_S)
                    continue
                _log.error("%s refused %s: %s", self._service, letter.what, error)
                self.lost += letter.size
            wait_s, warned = _FIRST_WAIT_S, 0.0
            with self._changed:
                self._letters.popleft()
                self._slow = self._slow and bool(self._letters)
                self._changed.notify_all()

"""An answer as server-sent events: pieces as they come, keep-alives, an error behind the first byte, `[DONE]`."""

from collections.abc import AsyncGenerator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sightloom.serving import sse
from sightloom.serving.assemble import Piece
from sightloom.serving.attempt import Attempt
from sightloom.serving.errors import ApiError


class EventStream(StreamingResponse):
    """Streams an attempt whose first piece is there; whatever ends the response closes the attempt.

    Args:
        first: the first piece, None where none has come in time for a keep-alive.
        answered: called once all samples have ended well.
        failed: called with the error of one that did not.
    """

    def __init__(
        self,
        attempt: Attempt,
        first: Piece | None,
        keep_alive_s: float,
        answered: Callable[[Attempt], None],
        failed: Callable[[Attempt, ApiError], None],
    ) -> None:
        self._attempt, self._keep_alive_s = attempt, keep_alive_s
        self._answered, self._failed = answered, failed
        self._ended = False
        self._pieces = self._events(first)
        super().__init__(self._pieces, media_type="text/event-stream", headers=sse.HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; where the client stops reading the generator is left at a yield, so it is closed here."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()
            await self._attempt.close(cancelled=not self._ended)

    async def _events(self, first: Piece | None) -> AsyncGenerator[bytes, None]:
        attempt = self._attempt
        samples, tally, head = attempt.samples, attempt.tally, attempt.head
        options = attempt.chat.stream_options
        continuous = options is not None and options.continuous_usage_stats
        # What is there at once is sent at once: a message to the socket costs more than an event.
        ready = [sse.event(head.opening(index)) for index in range(attempt.chat.n)]
        piece = first
        try:
            while True:
                if piece is None:
                    ready.append(sse.KEEP_ALIVE)
                else:
                    attempt.add(piece)
                    chunks = head.pieces(piece, tally.usage() if continuous else None)
                    ready.extend(sse.event(chunk) for chunk in chunks)
                if ready and samples.idle:
                    yield b"".join(ready)
                    ready.clear()
                piece = await samples.next(self._keep_alive_s)
        except StopAsyncIteration:
            self._answered(attempt)
            if options is not None and options.include_usage:
                ready.append(sse.event(head.chunk([], tally.usage())))
        except ApiError as error:
            self._failed(attempt, error)
            ready.append(sse.event(error.body))
        self._ended = True
        yield b"".join([*ready, sse.DONE])

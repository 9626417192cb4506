"""Splitting a token stream into thinking and answer, text by text, as the tokens come.

The result equals `model.thinking.parse_response` of the whole text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sightloom.model.thinking import Block
from sightloom.serving.engines.base import Outcome

# A character takes at most four byte-level tokens; what is still broken after this many is broken for good.
_LONGEST_CHARACTER: Final = 8


@dataclass(frozen=True, slots=True)
class ThinkTokens:
    """Ids of the marks that open and close a think block."""

    open: int
    close: int


@dataclass(slots=True)
class Split:
    """What one or more tokens added."""

    reasoning: str = ""
    answer: str = ""
    num_reasoning: int = 0
    num_answer: int = 0

    def __bool__(self) -> bool:
        return bool(self.num_reasoning or self.num_answer)


class Splitter:
    """Takes tokens one by one and keeps what has not been taken out yet.

    Args:
        decode: tokens to text without the model's special tokens.
        marks: None for a model that knows no thinking.
        opened: the prompt ends inside an open think block.
        budget: most tokens inside the block; the mark behind the last of them was forced.
        ends: the model's end tokens, which belong to no text.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        marks: ThinkTokens | None,
        opened: bool,
        budget: int,
        ends: frozenset[int],
    ) -> None:
        self._text_of = decode
        self._marks = marks
        self._block = Block(opened)
        self._budget = budget
        self._ends = ends
        self._num_thinking = 0
        self._pending: list[int] = []
        self._ready = Split()

    @property
    def outcome(self) -> Outcome | None:
        """How the thinking went; None while it still goes on."""
        block = self._block
        if not block.opened:
            return "off" if block.clean else "malformed"
        if not block.closed:
            return None
        if not block.clean:
            return "malformed"
        return "truncated" if self._num_thinking >= self._budget else "complete"

    def push(self, token: int) -> None:
        """Take a token."""
        if self._block.inside:
            self._ready.num_reasoning += 1
        else:
            self._ready.num_answer += 1
        if token in self._ends:
            return
        if self._marks is not None and token in (self._marks.open, self._marks.close):
            self._mark(token == self._marks.open)
            return
        if self._block.inside:
            self._num_thinking += 1
        self._pending.append(token)

    def end(self) -> Outcome:
        """No more tokens come: what is pending is text as it is."""
        self._decode(final=True)
        return self.outcome or "malformed"

    def take(self) -> Split:
        """What has come since the last call; half a character stays behind."""
        self._decode(final=False)
        ready, self._ready = self._ready, Split()
        return ready

    def _mark(self, opens: bool) -> None:
        self._decode(final=True)
        outside = not self._block.inside
        self._block.mark(opens)
        if outside and self._block.inside:  # the opening mark counts as thinking
            self._ready.num_answer -= 1
            self._ready.num_reasoning += 1

    def _decode(self, final: bool) -> None:
        if not self._pending:
            return
        text, held = self._text_of(self._pending), 0
        while text.endswith("\ufffd") and not final and held < min(_LONGEST_CHARACTER, len(self._pending)):
            held += 1
            text = self._text_of(self._pending[:-held])
        if text.endswith("\ufffd"):
            text, held = self._text_of(self._pending), 0
        self._pending = self._pending[len(self._pending) - held :]
        self._block.text(text)
        if self._block.inside:
            self._ready.reasoning += text
        else:
            self._ready.answer += text

"""Which part of a response is thinking and which is the answer: one rule, for whole texts and for streams of tokens.

The first opening mark opens the block unless the prompt has opened it, and the first closing mark behind that closes
it. Any other mark belongs to no text and makes the response malformed, as does an answer begun before the block.
"""

import re
from dataclasses import dataclass
from typing import Final

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"
_MARKS: Final = re.compile(f"({re.escape(THINK_OPEN)}|{re.escape(THINK_CLOSE)})")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A response taken apart. `well_formed`: at most one think block, closed, and then a non-empty answer."""

    thinking: str | None
    content: str
    well_formed: bool


class Block:
    """The think block of one response while its text comes in.

    Args:
        opened: the prompt ended inside an open block.
    """

    def __init__(self, opened: bool) -> None:
        self.inside = self.opened = opened
        self.closed = False
        self.clean = True
        self._answered = False

    def text(self, piece: str) -> None:
        """Take text that belongs to the side that `inside` names."""
        self._answered = self._answered or (not self.inside and bool(piece.strip()))

    def mark(self, opens: bool) -> None:
        """Take an opening or a closing mark."""
        if opens and not self.opened:
            self.opened = self.inside = True
            self.clean = self.clean and not self._answered
        elif not opens and self.inside:
            self.inside, self.closed = False, True
        else:
            self.clean = False


def parse_response(text: str, thinking_opened: bool) -> Parsed:
    """Split a response into thinking and content; the parser of rewards and evaluation, equal to serving's stream.

    Args:
        text: what the model wrote, special tokens removed, think marks kept.
        thinking_opened: the prompt ended with an open `<think>`.

    Without a closing mark, all that follows the opening is thinking, and the response is not well formed.
    """
    block = Block(thinking_opened)
    thinking, content = "", ""
    for piece in _MARKS.split(text):
        if piece in (THINK_OPEN, THINK_CLOSE):
            block.mark(piece == THINK_OPEN)
            continue
        block.text(piece)
        if block.inside:
            thinking += piece
        else:
            content += piece
    content = content.strip()
    well_formed = block.clean and block.closed == block.opened and bool(content)
    return Parsed(thinking.strip() if block.opened else None, content, well_formed)

"""Control tokens in what a client wrote: they could pose as another role, so the text is refused (serving.md §16)."""

from collections.abc import Iterable

from sightloom.serving.engines.base import Turn
from sightloom.serving.errors import invalid


def refuse_control_tokens(messages: Iterable[Turn], control: Iterable[str]) -> None:
    """See that no text holds one of the model's control tokens.

    Raises:
        ApiError: 400, naming the token and the message.
    """
    control = tuple(control)
    for place, turn in enumerate(messages):
        for part in turn.parts:
            if not isinstance(part, str):
                continue
            if found := next((token for token in control if token in part), None):
                raise invalid(f"the text holds the control token '{found}'", f"messages[{place}].content")

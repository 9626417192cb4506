"""The first question to an engine: a picture, so that every part has run before a client waits for it."""

import io
from typing import Final

from PIL import Image

from sightloom.serving.engines.base import EngineRequest, Sampling, Thinking, Turn

WARM_UP_TOKENS: Final = 4


def warm_up_picture() -> bytes:
    """A small plain picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def warm_up_request() -> EngineRequest:
    """A short question about it."""
    return EngineRequest(
        request_id="warm-up",
        messages=(Turn("user", (0, "Describe the image.")),),
        images=(warm_up_picture(),),
        sampling=Sampling(0.0, 1.0, 0, 0),
        thinking=Thinking(None, None, 1),
        max_tokens=WARM_UP_TOKENS,
        deadline_s=600.0,
    )

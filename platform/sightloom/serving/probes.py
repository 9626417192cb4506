"""An export's probes, asked again where it is served: whether the engine answers as the model did when it was made."""

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sightloom.model.thinking import parse_response
from sightloom.records import Conversation
from sightloom.serving.engines.base import Engine, EngineRequest, Sampling, Thinking, Turn

PROBES: Final = "probes.jsonl"
_DEADLINE_S: Final = 300.0


async def probe_match(engine: Engine, folder: Path) -> float | None:
    """The share of the probes that are answered as they were by the model that was exported; None: it has none.

    An engine that computes in another precision may word an answer otherwise; that it answers at all is a condition.

    Raises:
        ApiError: a probe was not answered.
    """
    file = folder / PROBES
    lines = [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []
    if not lines:
        return None
    matches = [await _answered_alike(engine, number, line) for number, line in enumerate(lines)]
    return sum(matches) / len(matches)


async def _answered_alike(engine: Engine, number: int, line: dict[str, Any]) -> bool:
    kept = parse_response(line["text"], line["thinking"] is True)
    num_tokens = len(line["token_ids"])
    reasoning, answer, seen = "", "", 0
    async with contextlib.aclosing(engine.generate(_request(number, line, num_tokens))) as deltas:
        async for delta in deltas:
            reasoning += delta.reasoning
            answer += delta.answer
            seen += delta.num_reasoning_tokens + delta.num_answer_tokens
            if seen >= num_tokens:
                break
    return _begins(reasoning, kept.thinking or "") and _begins(answer, kept.content)


def _begins(said: str, kept: str) -> bool:
    """What was kept was cut after some tokens: of two texts the shorter must be the other's beginning."""
    said, kept = said.strip(), kept.strip()
    return said.startswith(kept) or (bool(said) and kept.startswith(said))


def _request(number: int, line: dict[str, Any], num_tokens: int) -> EngineRequest:
    """The probe as a greedy request. Its bound leaves so much room that no thought is cut within the kept tokens."""
    conversation = Conversation.from_json(line["conversation"])
    messages = conversation.messages
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    image = _upright(base64.b64decode(line["image"])) if line["image"] is not None else None
    turns = tuple(
        Turn(message.role, (0, message.text) if message.image and image is not None else (message.text,))
        for message in messages
    )
    return EngineRequest(
        request_id=f"probe-{number}",
        messages=turns,
        images=(image,) if image is not None else (),
        sampling=Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0),
        thinking=Thinking(line["thinking"], None, num_tokens),
        max_tokens=2 * num_tokens,
        deadline_s=_DEADLINE_S,
        pieces="token",
    )


def _upright(data: bytes) -> bytes:
    """The picture as training read it: its pixels as RGB."""
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode == "RGB" and opened.format in ("PNG", "JPEG"):
            return data
        buffer = io.BytesIO()
        opened.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()

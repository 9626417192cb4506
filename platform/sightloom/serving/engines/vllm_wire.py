"""What is said to a vLLM server and what it says back: request bodies, events to deltas, refusals (serving.md §3, §4).

Text is made from token ids by our own splitter and tokenizer, so that thinking, answer and counts are those of the
transformers engine; vLLM's own split is not read.
"""

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from sightloom.errors import UserMistake
from sightloom.model.thinking import THINK_CLOSE, THINK_OPEN
from sightloom.serving.engines.base import Delta, EngineRequest, Finish, PromptUsage, Timing
from sightloom.serving.engines.split import Splitter, ThinkTokens
from sightloom.serving.errors import ApiError, engine_died

_OF_PICTURES: Final = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_FINISHES: Final[dict[str, Finish]] = {"stop": "stop", "length": "length"}
_TOO_LONG: Final = re.compile(
    r"maximum context length|longer than the maximum model length|input tokens", re.IGNORECASE
)
NEVER: Final = -100.0  # vLLM's least logit bias: the token is not written
TEMPLATE_TOKENS: Final = 16  # at most, around one message


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the adapter must know of a model folder's tokenizer and configuration."""

    tokenizer: Tokenizer
    control: tuple[str, ...]
    marks: ThinkTokens | None
    ends: frozenset[int]
    image: int | None
    never: tuple[int, ...]
    image_tokens: int | None  # most tokens of one picture, None where the folder does not say
    templated: bool  # the tokenizer has a response template

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read it, without loading torch or transformers.

    Raises:
        UserMistake: the folder has no `tokenizer.json`.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserMistake(f"'{folder}' holds no tokenizer.json", "export the model with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    opening, closing = tokenizer.token_to_id(THINK_OPEN), tokenizer.token_to_id(THINK_CLOSE)
    ends = generation.get("eos_token_id", config.get("text_config", config).get("eos_token_id"))
    return Vocabulary(
        tokenizer=tokenizer,
        control=tuple(sorted(str(token.content) for token in tokenizer.get_added_tokens_decoder().values())),
        marks=None if opening is None or closing is None else ThinkTokens(opening, closing),
        ends=frozenset([ends] if isinstance(ends, int) else ends or ()),
        image=config.get("image_token_id"),
        never=tuple(sorted({config[name] for name in _OF_PICTURES if config.get(name) is not None})),
        image_tokens=_image_tokens(folder),
        templated="response_template" in _json(folder / "tokenizer_config.json"),
    )


def _image_tokens(folder: Path) -> int | None:
    processor = _json(folder / "processor_config.json").get("image_processor")
    processor = processor or _json(folder / "preprocessor_config.json")
    try:
        side = int(processor["patch_size"]) * int(processor["merge_size"])
        return -(-int(processor["size"]["longest_edge"]) // side**2) + 2
    except (KeyError, TypeError, ValueError):
        return None


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def longest_prompt(request: EngineRequest, vocabulary: Vocabulary) -> int | None:
    """An upper bound of the prompt's tokens (a byte-level token holds at least a byte); None: not known."""
    if request.images and vocabulary.image_tokens is None:
        return None
    texts = sum(len(part.encode()) for turn in request.messages for part in turn.parts if isinstance(part, str))
    pictures = len(request.images) * (vocabulary.image_tokens or 0)
    return texts + pictures + TEMPLATE_TOKENS * (len(request.messages) + 1)


def body_of(
    request: EngineRequest, model: str, vocabulary: Vocabulary, max_tokens: int, opening: int, interval: int
) -> dict[str, Any]:
    """The body of vLLM's `/v1/chat/completions`.

    Args:
        max_tokens: within the window.
        opening: tokens that stand in a prompt behind an open think mark; vLLM counts them as thinking.
        interval: tokens that are gathered into one event.
    """
    sampling, thinking = request.sampling, request.thinking
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn.role, turn.parts, request.images) for turn in request.messages],
        "max_completion_tokens": max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stream_interval": interval,
        "return_token_ids": True,
    }
    if sampling.temperature > 0:
        body |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
        if sampling.seeded:
            body["seed"] = sampling.seed
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (value := getattr(sampling, name)) != (1.0 if name == "repetition_penalty" else 0.0):
            body[name] = value
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    never = set(vocabulary.never)
    if request.grammar is not None and vocabulary.marks is not None:  # inside a JSON text a mark would be taken for one
        never |= {vocabulary.marks.open} if thinking.enabled else {vocabulary.marks.open, vocabulary.marks.close}
    if never:
        body["logit_bias"] = {str(token): NEVER for token in sorted(never)}
    if thinking.enabled is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking.enabled}
    if vocabulary.marks is not None and thinking.enabled is not False:
        budget = thinking.effective_budget(max_tokens)
        body["thinking_token_budget"] = budget + (opening if thinking.enabled else 0)
    if request.grammar is not None:
        body["structured_outputs"] = {"json": json.loads(request.grammar)}
    return body


def _message(role: str, parts: Sequence[str | int], images: Sequence[bytes]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, int):
            content.append({"type": "image_url", "image_url": {"url": _data_url(images[part])}})
        else:
            content.append({"type": "text", "text": part})
    return {"role": role, "content": content}


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg" if image.startswith(b"\xff\xd8") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


class Events:
    """Cuts a stream of bytes into the JSON of its server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The events that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        events = []
        for block in whole:
            if block == b"data: [DONE]":
                self.done = True
            elif block.startswith(b"data: "):
                events.append(json.loads(block[6:]))
        return events


def singly(events: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The same events with one token each: the server joins tokens when it is busy."""
    for event in events:
        choice = next(iter(event.get("choices", ())), None)
        tokens = (choice.get("token_ids") or ()) if choice is not None else ()
        if choice is None or len(tokens) < 2:
            yield [event]
            continue
        for place, token in enumerate(tokens, 1):
            finish = choice["finish_reason"] if place == len(tokens) else None
            yield [{"choices": [{**choice, "token_ids": [token], "finish_reason": finish}]}]


@dataclass(slots=True)
class Reply:
    """One reply in the making: events in, deltas out."""

    splitter: Splitter
    image: int | None
    received: float
    usage: PromptUsage | None = None
    first: float = 0.0
    num_tokens: int = 0
    queue_s: float = 0.0
    token_s: float | None = None  # between its tokens, once it has ended
    _finish: Finish | None = None
    _new_usage: bool = field(default=False)

    def push(self, events: Sequence[Mapping[str, Any]]) -> Delta | None:
        """What some events add; the delta with `finish` is the last.

        Raises:
            ApiError: the server says that it failed.
        """
        last = False
        for event in events:
            if "error" in event:
                raise failure(event["error"])
            if (prompt := event.get("prompt_token_ids")) is not None:
                self.usage = PromptUsage(len(prompt), 0 if self.image is None else prompt.count(self.image))
                self._new_usage = True
            for choice in event["choices"]:
                for token in choice.get("token_ids") or ():
                    self.splitter.push(token)
                    self.num_tokens += 1
                if (reason := choice["finish_reason"]) is not None:
                    self._finish = _FINISHES.get(reason)
                    if self._finish is None:
                        raise engine_died()
            if not event["choices"]:
                last = True
                self._totals(event)
        return self._delta(last)

    def _totals(self, event: Mapping[str, Any]) -> None:
        details = event.get("usage", {}).get("prompt_tokens_details") or {}
        if self.usage is not None and details.get("cached_tokens"):
            self.usage = PromptUsage(self.usage.prompt, self.usage.image, details["cached_tokens"])
            self._new_usage = True
        metrics = event.get("metrics") or {}
        self.queue_s = (metrics.get("queue_time_ms") or 0.0) / 1000
        if metrics.get("mean_itl_ms"):  # the server's own: what is read here may have been joined on its way
            self.token_s = metrics["mean_itl_ms"] / 1000
        elif self.num_tokens > 1:  # a bound from above, the wait for the first one included
            self.token_s = (time.monotonic() - self.received) / self.num_tokens

    def _delta(self, last: bool) -> Delta | None:
        finish = self._finish if last else None
        outcome = self.splitter.outcome if finish is None else self.splitter.end()
        piece = self.splitter.take()
        if not piece and finish is None:
            return None
        now = time.monotonic()
        self.first = self.first or now
        usage, self._new_usage = (self.usage if self._new_usage else None), False
        timing = None
        if finish is not None:
            timing = Timing(self.queue_s, self.first - self.received, now - self.received)
        return Delta(
            piece.reasoning, piece.answer, piece.num_reasoning, piece.num_answer, usage, finish, outcome, timing
        )


def refusal(status: int, body: bytes, window: int) -> ApiError:
    """Our error for a server's answer that is no 200."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        error, message = {}, ""
    if status == 400 and _TOO_LONG.search(message):
        numbers = [int(number) for number in re.findall(r"\d+", message)]
        prompt = next((number for number in numbers if number >= window), window)
        return too_long(prompt, window)
    if status == 400:
        return ApiError(400, "invalid_value", f"the engine refused the request: {message[:300]}", error.get("param"))
    if status in (401, 403, 404):
        return ApiError(502, "engine_error", f"the engine's server refused us with {status}")
    if status == 429:
        return ApiError(429, "engine_overloaded", "the engine's queue is full", retry_after_s=1)
    return failure(error)


def too_long(prompt: int, window: int) -> ApiError:
    """A 400 `context_length_exceeded` with both numbers."""
    return ApiError(
        400,
        "context_length_exceeded",
        f"the prompt has {prompt} tokens or more; the model's window holds {window}, the answer included",
        "messages",
    )


def failure(error: Any) -> ApiError:
    """The error of a request that the server gave up: alone, or with the whole engine."""
    message = str(error.get("message", "")) if isinstance(error, Mapping) else ""
    if not message or "EngineCore" in message or "EngineDead" in message:
        return engine_died()
    return ApiError(502, "engine_error", f"the engine failed: {message[:200]}")

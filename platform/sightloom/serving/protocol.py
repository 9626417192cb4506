"""The request of `POST /v1/chat/completions`: every field acts or is refused (serving.md §2)."""

import json
import re
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sightloom.config import nearest
from sightloom.serving.errors import ApiError, invalid

MAX_MESSAGES: Final = 256
MAX_CHARACTERS: Final = 200_000
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Body(BaseModel):
    """Base of every request object: strict types, and a key that means nothing here is an error.

    What asks for nothing is accepted whatever its name: `null`, an empty string, list or object, and `false` for an
    OpenAI option that is not served.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    unsupported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _keep_what_asks(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept: dict[str, Any] = {}
        for key, value in data.items():
            known = key in cls.model_fields
            if value is None or (not known and value in ("", [], {})):
                continue
            if key in cls.unsupported and not known and value is False:
                continue
            if key in cls.unsupported and not known:
                raise PydanticCustomError("unsupported_parameter", "is not served here", {"key": key})
            if not known:
                hint = nearest(str(key), list(cls.model_fields))
                raise PydanticCustomError("unknown_parameter", "is not a parameter{hint}", {"key": key, "hint": hint})
            kept[key] = value
        return kept


class ImageUrl(Body):
    """A picture: a `data:` URL, or an address of a domain that the operator allows."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "high", "low"] = "auto"


class TextPart(Body):
    """A part of a message: text."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """A part of a message: a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"#{kind}" if kind in ("text", "image_url") else None


def _content_tag(content: Any) -> str:
    return "#string" if isinstance(content, str) else "#parts"


Part = Annotated[
    Annotated[TextPart, Tag("#text")] | Annotated[ImagePart, Tag("#image_url")],
    Discriminator(
        _part_tag,
        custom_error_type="part",
        custom_error_message="expected a part of type 'text' or 'image_url'",
    ),
]
Content = Annotated[
    Annotated[str, Tag("#string")] | Annotated[list[Part], Field(min_length=1, max_length=64), Tag("#parts")],
    Discriminator(_content_tag),
]


class Message(Body):
    """One message. An assistant's old reasoning is accepted and dropped, as clients send whole replies back."""

    unsupported = frozenset({"name", "tool_calls", "tool_call_id", "function_call", "audio", "refusal", "annotations"})
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    reasoning_content: str = ""
    reasoning: str = ""

    @model_validator(mode="before")
    @classmethod
    def _silent_assistant(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content") is None:
            return {**data, "content": ""}
        return data


class StreamOptions(Body):
    """What a stream carries besides the answer."""

    unsupported = frozenset({"include_obfuscation"})
    include_usage: bool = False
    continuous_usage_stats: bool = False


class TemplateOptions(Body):
    """Arguments of the chat template."""

    enable_thinking: bool | None = None


class ResponseFormat(Body):
    """The answer's form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class SelfConsistency(Body):
    """Draw several samples and keep the answer of the majority."""

    n: Annotated[int, Field(ge=2, le=16)]
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.7


class Extension(Body):
    """Our own options."""

    self_consistency: SelfConsistency | None = None
    deadline_s: Annotated[float, Field(ge=1, le=600)] | None = None


class ChatRequest(Body):
    """Body of `POST /v1/chat/completions`."""

    unsupported = frozenset(
        {
            "tools", "functions", "function_call", "parallel_tool_calls", "logprobs", "top_logprobs", "logit_bias",
            "audio", "modalities", "prediction", "service_tier", "verbosity", "web_search_options", "moderation",
            "prompt_cache_retention", "best_of", "echo", "suffix", "guided_json", "guided_regex", "guided_choice",
            "guided_grammar", "structured_outputs",
        }
    )  # fmt: skip

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(max_length=64)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=4)]
    ) = []
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=8)] = 1
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()
    include_reasoning: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    sightloom: Extension = Extension()
    user: Annotated[str, Field(max_length=512)] = ""
    metadata: dict[str, Any] = {}
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    store: bool = False
    tool_choice: Any = "none"

    @model_validator(mode="after")
    def _whole(self) -> "ChatRequest":
        for key, asks in (("store", self.store), ("tool_choice", self.tool_choice != "none")):
            if asks:
                raise PydanticCustomError("unsupported_parameter", "is not served here", {"key": key})
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _wrong("max_tokens", "differs from 'max_completion_tokens'; send one of them")
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "needs 'stream': true")
        characters = 0
        for index, message in enumerate(self.messages):
            parts = [] if isinstance(message.content, str) else message.content
            pictures = [place for place, part in enumerate(parts) if isinstance(part, ImagePart)]
            if pictures and message.role != "user":
                raise _wrong(f"messages[{index}].content[{pictures[0]}]", "a picture stands only in a user's message")
            texts = [part.text for part in parts if isinstance(part, TextPart)]
            characters += len(message.content) if isinstance(message.content, str) else sum(map(len, texts))
        if characters > MAX_CHARACTERS:
            raise _wrong("messages", f"hold {characters} characters of text; at most {MAX_CHARACTERS} are taken")
        if self.messages[-1].role == "assistant":
            raise _wrong(f"messages[{len(self.messages) - 1}].role", "the last message must not be the assistant's")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if isinstance(self.stop, str):
            return (self.stop,) if self.stop else ()
        return tuple(self.stop)


def read_json(body: bytes) -> dict[str, Any]:
    """Parse a request's body into an object.

    Raises:
        ApiError: 400 `invalid_json`: not UTF-8, not JSON (NaN and Infinity are none), nested too deeply, or no object.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if _SURROGATE.search(body):
            json.dumps(
                data, ensure_ascii=False
            ).encode()  # half a surrogate pair is no text and would fail far from here
    except (ValueError, RecursionError) as error:
        place = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, "invalid_json", f"the body is not valid JSON{place}") from error
    if not isinstance(data, dict):
        raise ApiError(400, "invalid_json", f"the body must be a JSON object, not {type(data).__name__}")
    return data


B = TypeVar("B", bound=Body)


def parse(kind: type[B], data: dict[str, Any]) -> B:
    """Validate a request's body.

    Raises:
        ApiError: 400 for the first thing that is wrong, with its path.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _as_api_error(error) from error


def _wrong(param: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{why}", {"param": param, "why": why})


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _as_api_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    context = first.get("ctx", {})
    location = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("#"))]
    if "key" in context:
        location.append(str(context["key"])[:64])
    param = str(context.get("param") or _path(location))
    if first["type"] == "missing":
        return invalid(f"'{param}' is required", param, "missing_parameter")
    if first["type"] in ("unknown_parameter", "unsupported_parameter"):
        return invalid(f"'{param}' {first['msg']}", param, first["type"])
    return invalid(f"'{param}': {first['msg'][0].lower()}{first['msg'][1:]}", param)


def _path(location: list[Any]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "constrained-str") and not str(part).startswith(("list[", "function-")):
            path += f".{part}" if path else str(part)
    return path

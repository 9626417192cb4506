"""The nouns that travel between rooms: pairs, conversations and checkable answers (data.md §13)."""

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

DOMAINS: Final = ("natural", "document", "science", "ui", "art")
Kind = Literal["pair", "conversation", "preference"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
Role = Literal["system", "user", "assistant"]
AnswerKind = Literal["choice", "number", "text", "list", "box", "point", "math", "words"]
ANSWER_KINDS: Final[tuple[str, ...]] = get_args(AnswerKind)
CAPTION_PROMPT: Final = "Describe the image."


class InvalidRecord(ValueError):
    """A record breaks the schema at `pointer`, e.g. `messages.1.role: expected assistant, got user`."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"{pointer}: {reason}")
        self.pointer = pointer
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What a right answer is, in a form that a program can check.

    A `box` is [x1, y1, x2, y2] and a `point` [x, y] in 0–1000 of the picture's sides; a `point` may also carry a box,
    and then every point inside it is right. `math` is an expression in LaTeX or plain signs, `words` a transcription
    that is scored by its word errors. `tolerance` is relative, for numbers and mathematics.
    """

    kind: AnswerKind
    value: Any
    options: tuple[str, ...] = ()
    tolerance: float | None = None

    @classmethod
    def from_json(cls, value: Any, pointer: str = "answer") -> "Answer":
        """Read the `answer` object of a record; raises InvalidRecord."""
        fields = _mapping(value, pointer, {"kind", "value", "options", "tolerance"})
        kind = fields.get("kind")
        if kind not in ANSWER_KINDS:
            raise InvalidRecord(f"{pointer}.kind", f"expected one of {', '.join(ANSWER_KINDS)}, got {kind!r}")
        if "value" not in fields or fields["value"] is None:
            raise InvalidRecord(f"{pointer}.value", "is required")
        answer = fields["value"]
        if kind in ("box", "point"):
            sizes = (4,) if kind == "box" else (2, 4)
            if not isinstance(answer, list) or len(answer) not in sizes or not all(_is_coordinate(x) for x in answer):
                raise InvalidRecord(f"{pointer}.value", f"expected {' or '.join(map(str, sizes))} numbers in 0–1000")
        if kind == "number" and not _is_number(answer):
            raise InvalidRecord(f"{pointer}.value", f"expected a number, got {answer!r}")
        if kind in ("text", "choice", "math", "words") and not isinstance(answer, str):
            raise InvalidRecord(f"{pointer}.value", f"expected a string, got {answer!r}")
        if kind == "list" and not isinstance(answer, list):
            raise InvalidRecord(f"{pointer}.value", f"expected a list, got {answer!r}")
        options = fields.get("options") or []
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise InvalidRecord(f"{pointer}.options", "expected a list of strings")
        tolerance = fields.get("tolerance")
        if tolerance is not None and not (_is_number(tolerance) and tolerance >= 0):
            raise InvalidRecord(f"{pointer}.tolerance", f"expected a number that is not negative, got {tolerance!r}")
        return cls(kind, tuple(answer) if isinstance(answer, list) else answer, tuple(options), tolerance)

    def to_json(self) -> dict[str, Any]:
        """The `answer` object of a record."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        fields: dict[str, Any] = {"kind": self.kind, "value": value}
        if self.options:
            fields["options"] = list(self.options)
        if self.tolerance is not None:
            fields["tolerance"] = self.tolerance
        return fields


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `image`: the picture stands in front of the text; `reasoning`: what came before the answer."""

    role: Role
    text: str
    image: bool = False
    reasoning: str | None = None

    @classmethod
    def from_json(cls, value: Any, pointer: str) -> "Message":
        """Read one element of `messages`; raises InvalidRecord."""
        fields = _mapping(value, pointer, {"role", "content", "reasoning"})
        role: Any = fields.get("role")
        if role not in get_args(Role):
            raise InvalidRecord(f"{pointer}.role", f"expected one of {', '.join(get_args(Role))}, got {role!r}")
        text, images = _content(fields.get("content"), f"{pointer}.content")
        reasoning = fields.get("reasoning")
        if reasoning is not None and (role != "assistant" or not isinstance(reasoning, str)):
            raise InvalidRecord(f"{pointer}.reasoning", "only a string on an assistant's turn")
        if images > 1:
            raise InvalidRecord(f"{pointer}.content", f"expected at most one image, got {images}")
        if images and role != "user":
            raise InvalidRecord(f"{pointer}.content", "an image stands only in a user's turn")
        if not text and not images:
            raise InvalidRecord(f"{pointer}.content", "is empty")
        for name, words in (("content", text), ("reasoning", reasoning or "")):
            _check_words(words, f"{pointer}.{name}")
        return cls(role, text, bool(images), reasoning)

    def to_json(self) -> dict[str, Any]:
        """One element of `messages`."""
        content: Any = [{"type": "image"}, {"type": "text", "text": self.text}] if self.image else self.text
        fields: dict[str, Any] = {"role": self.role, "content": content}
        if self.reasoning is not None:
            fields["reasoning"] = self.reasoning
        return fields


@dataclass(frozen=True, slots=True)
class Conversation:
    """An instruction, reasoning or preference record over at most one picture."""

    id: str
    kind: Kind
    task: str
    domain: str
    messages: tuple[Message, ...]
    answer: Answer | None = None
    chosen: Message | None = None
    rejected: Message | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Conversation":
        """Read and check a record of data.md §13; unknown fields are left to the caller.

        Raises:
            InvalidRecord: with the pointer of what is wrong.
        """
        if not isinstance(value, dict):
            raise InvalidRecord("record", f"expected an object, got {type(value).__name__}")
        for name in ("id", "kind", "task", "domain"):
            if not isinstance(value.get(name), str) or not value[name]:
                raise InvalidRecord(name, "expected a non-empty string")
            _check_words(value[name], name)
        if value["kind"] not in ("conversation", "preference"):
            raise InvalidRecord("kind", f"expected conversation or preference, got {value['kind']!r}")
        raw = value.get("messages")
        if not isinstance(raw, list) or not raw:
            raise InvalidRecord("messages", "expected a non-empty list")
        messages = [Message.from_json(item, f"messages.{index}") for index, item in enumerate(raw)]
        reasoning = value.get("reasoning")
        if reasoning is not None:
            if not isinstance(reasoning, str):
                raise InvalidRecord("reasoning", f"expected a string, got {type(reasoning).__name__}")
            _check_words(reasoning, "reasoning")
            if messages[-1].role == "assistant":
                messages[-1] = replace(messages[-1], reasoning=messages[-1].reasoning or reasoning)
        answer = None if value.get("answer") is None else Answer.from_json(value["answer"])
        _check_turns(messages, value["kind"], answer)
        chosen = rejected = None
        if value["kind"] != "preference":
            for name in ("chosen", "rejected"):
                if value.get(name) is not None:
                    raise InvalidRecord(name, "stands only in a record of kind preference")
        else:
            chosen = Message.from_json(value.get("chosen"), "chosen")
            rejected = Message.from_json(value.get("rejected"), "rejected")
            for name, message in (("chosen", chosen), ("rejected", rejected)):
                if message.role != "assistant":
                    raise InvalidRecord(f"{name}.role", f"expected assistant, got {message.role}")
        return cls(
            value["id"], value["kind"], value["task"], value["domain"], tuple(messages), answer, chosen, rejected
        )

    def to_json(self) -> dict[str, Any]:
        """The record object; `from_json` of it gives an equal conversation."""
        fields: dict[str, Any] = {"id": self.id, "kind": self.kind, "task": self.task, "domain": self.domain}
        fields["messages"] = [message.to_json() for message in self.messages]
        for name in ("answer", "chosen", "rejected"):
            part = getattr(self, name)
            if part is not None:
                fields[name] = part.to_json()
        return fields

    @property
    def turns(self) -> int:
        """Number of the assistant's turns."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def reasoning_chars(self) -> int:
        """Characters of the last assistant turn's reasoning, 0 without one."""
        last = self.messages[-1]
        return len(last.reasoning or "") if last.role == "assistant" else 0

    @property
    def has_image(self) -> bool:
        """Whether a picture belongs to the record."""
        return any(message.image for message in self.messages)

    def with_image(self) -> "Conversation":
        """The same record with its picture in front of the first user turn, where plain text left its place open."""
        if self.has_image:
            return self
        first = next(index for index, message in enumerate(self.messages) if message.role == "user")
        messages = list(self.messages)
        messages[first] = replace(messages[first], image=True)
        return replace(self, messages=tuple(messages))

    def compared(self) -> tuple["Conversation", "Conversation"]:
        """A preference record as two dialogues: the one that ends with the chosen answer, and the other.

        Raises:
            ValueError: the record compares nothing.
        """
        if self.chosen is None or self.rejected is None:
            raise ValueError(f"conversation {self.id} is no preference: it has no chosen and rejected answer")
        dialogue = replace(self, kind="conversation", chosen=None, rejected=None)
        first, second = (replace(dialogue, messages=(*self.messages, end)) for end in (self.chosen, self.rejected))
        return first, second

    def prompt(self) -> tuple[Message, ...]:
        """The messages up to the last user turn: what a model is asked."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture's caption."""

    text: str
    domain: str

    def as_conversation(self, id: str) -> Conversation:
        """The pair as a dialogue: the fixed caption prompt, answered by the caption."""
        question = Message("user", CAPTION_PROMPT, image=True)
        return Conversation(id, "conversation", "caption", self.domain, (question, Message("assistant", self.text)))


def _check_turns(messages: list[Message], kind: str, answer: Answer | None) -> None:
    start = 1 if messages[0].role == "system" else 0
    for offset, message in enumerate(messages[start:]):
        expected = "user" if offset % 2 == 0 else "assistant"
        if message.role != expected:
            raise InvalidRecord(f"messages.{start + offset}.role", f"expected {expected}, got {message.role}")
        if message.image and offset > 0:
            raise InvalidRecord(f"messages.{start + offset}.content", "the image stands in the first user turn")
    last = messages[-1]
    if len(messages) == start or (kind == "preference" and last.role != "user"):
        raise InvalidRecord("messages", "must end with a user's turn" if kind == "preference" else "no turn")
    if kind == "conversation" and last.role != "assistant" and answer is None:
        raise InvalidRecord("messages", "must end with the assistant's turn, or an answer must be given")


def _content(value: Any, pointer: str) -> tuple[str, int]:
    """Text and number of images of a message's content."""
    if isinstance(value, str):
        return value.strip(), 0
    if not isinstance(value, list):
        raise InvalidRecord(pointer, "expected a string or a list of parts")
    texts, images = [], 0
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            images += 1
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise InvalidRecord(f"{pointer}.{index}", "expected a part of type image or text")
    return "\n".join(texts).strip(), images


def _mapping(value: Any, pointer: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRecord(pointer, f"expected an object, got {type(value).__name__}")
    for key in value:
        if key not in known:
            raise InvalidRecord(f"{pointer}.{key}", "unknown field")
    return value


def _check_words(words: str, pointer: str) -> None:
    if "<think>" in words or "</think>" in words:
        raise InvalidRecord(pointer, "no think marks in text; reasoning has its own field")
    if "\0" in words or any("\ud800" <= letter <= "\udfff" for letter in words):
        raise InvalidRecord(pointer, "holds a NUL or half a surrogate pair, which is no text")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_coordinate(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1000

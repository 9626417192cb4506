"""One raw record, whatever form it came in: a pair or a dialogue, or the reason why it is neither."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sightloom.config import canonical_json
from sightloom.records import Answer, Conversation, InvalidRecord, Kind, Message

OK = "ok"
UNKNOWN_DOMAIN = "unknown"
MAX_DETAIL = 300


@dataclass(slots=True)
class RawRecord:
    """A record as read, before anything is measured; `meta` becomes the json member of its sample."""

    pos: int
    key: str
    status: str = OK
    detail: str = ""
    kind: Kind = "pair"
    image: bytes | None = None
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    domain: str = UNKNOWN_DOMAIN
    uid: str | None = None
    offset: int | None = None
    size: int | None = None
    task: str | None = None
    turns: int | None = None
    answer_kind: str | None = None
    reasoning_chars: int | None = None

    def refuse(self, status: str, detail: str = "") -> None:
        """Give the record a reason, unless it has one."""
        if self.status == OK:
            self.status, self.detail = status, detail[:MAX_DETAIL]


def find(values: Mapping[str, Any], path: str | None) -> Any:
    """Look up `column` or `json.category`; None where it is not."""
    if path is None:
        return None
    if path in values:
        return values[path]
    head, _, rest = path.partition(".")
    inner = values.get(head)
    return find(inner, rest) if rest and isinstance(inner, Mapping) else None


def assemble(
    record: RawRecord, values: Mapping[str, Any], fields: Mapping[str, str], image: object, text: object
) -> RawRecord:
    """Fill a record from what its source found; whatever is missing or wrong becomes its status.

    Args:
        record: position, key, byte range and the fields to keep (`meta`), perhaps a status already.
        values: everything that `fields` may point at.
        fields: field of a sample -> path in `values`; `image` and `text` were resolved by the source.
        image: the image's bytes, or None.
        text: the caption as bytes or text, or None.
    """
    domain = find(values, fields.get("domain"))
    record.domain = writable(str(domain)) if domain else UNKNOWN_DOMAIN
    if isinstance(image, bytes) and image:
        record.image = image
    _take_uid(record, find(values, fields.get("uid")))
    ready = find(values, fields.get("record"))
    if ready is None and not {"record", "question"} & fields.keys() and isinstance(values.get("messages"), list):
        ready = values  # the row itself is a record
    if ready is None and "question" in fields:
        _take_conversation(record, _build(record, values, fields))
    elif ready is not None:
        _take_conversation(record, _parse(record, ready))
    else:
        _take_caption(record, text)
    _clean_meta(record)
    return record


def _clean_meta(record: RawRecord) -> None:
    """Make the fields that are kept writable as JSON."""
    try:
        canonical_json(record.meta)
    except ValueError:
        record.meta = writable(record.meta)
    except RecursionError as error:
        record.refuse("invalid_record", f"json: {error}")
        record.meta = {}


def writable(value: Any) -> Any:
    """Return plain data that JSON and UTF-8 can hold: NaN and infinities become null, half surrogate pairs `?`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {writable(name): writable(inner) for name, inner in value.items()}
    return [writable(inner) for inner in value] if isinstance(value, list) else value


def _take_uid(record: RawRecord, given: object) -> None:
    if given is None:
        return
    record.uid = str(given).lower()
    if len(record.uid) != 32 or any(digit not in "0123456789abcdef" for digit in record.uid):
        record.refuse("invalid_uid", f"{given!r} is not 32 hex digits")
        record.uid = None


def _take_caption(record: RawRecord, text: object) -> None:
    if record.image is None:
        record.refuse("missing_image")
    if text is None:
        record.refuse("missing_text")
        return
    try:
        record.text = text.decode("utf-8") if isinstance(text, bytes) else str(text)
        record.text.encode("utf-8")
    except UnicodeError as error:
        record.text = ""
        record.refuse("invalid_text", str(error))
    if "\0" in record.text:
        record.text = record.text.replace("\0", "")
        record.refuse("invalid_text", "it holds a NUL character")
    if not record.text.strip():
        record.refuse("empty_text")


def _take_conversation(record: RawRecord, ready: object) -> None:
    """Check a dialogue; the checked record and the source's other fields are what is kept."""
    record.kind = "preference" if isinstance(ready, Mapping) and ready.get("kind") == "preference" else "conversation"
    if record.status != OK:
        return
    try:
        conversation = Conversation.from_json(ready)
    except InvalidRecord as error:
        record.refuse("invalid_record", f"{error.pointer}: {error.reason}")
        return
    if record.image is not None:
        conversation = conversation.with_image()
    elif conversation.has_image:
        record.refuse("missing_image")
    record.kind, record.task, record.domain = conversation.kind, conversation.task, conversation.domain
    record.turns, record.reasoning_chars = conversation.turns, conversation.reasoning_chars
    record.answer_kind = conversation.answer.kind if conversation.answer else None
    record.text = next((message.text for message in conversation.messages if message.role == "user"), "")
    record.meta = {**record.meta, **conversation.to_json()}


def _parse(record: RawRecord, ready: object) -> object:
    """Read a record given as JSON text; anything else is returned as it is."""
    if not isinstance(ready, str | bytes):
        return ready
    try:
        return json.loads(ready)
    except (ValueError, RecursionError) as error:
        record.refuse("invalid_record", f"record: not JSON: {error}")
        return None


def _build(record: RawRecord, values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any] | None:
    """Make a record from separate columns: question, answer, options, reasoning."""
    question, answer = find(values, fields["question"]), find(values, fields.get("answer"))
    try:
        words = question.decode("utf-8") if isinstance(question, bytes) else question
    except UnicodeError as error:
        record.refuse("invalid_text", str(error))
        return None
    if not words or answer in (None, ""):
        record.refuse("empty_text", "the question or the answer is empty")
        return None
    options = tuple(str(option) for option in find(values, fields.get("options")) or ())
    user = Message("user", str(words).strip())
    conversation = Conversation(
        str(find(values, fields.get("id")) or record.key),
        "conversation",
        str(find(values, fields.get("task")) or "question"),
        record.domain,
        (user,),
        _answer(answer, options),
    )
    reasoning = find(values, fields.get("reasoning"))
    reply = {"role": "assistant", "content": str(answer)} | ({"reasoning": str(reasoning)} if reasoning else {})
    built = conversation.to_json()
    built["messages"].append(reply)
    return built


def _answer(value: object, options: tuple[str, ...]) -> Answer:
    """Read a bare answer: a choice where there are options, else a number, else text."""
    if options:
        return Answer("choice", str(value), options)
    try:
        number = float(str(value))
    except ValueError:
        return Answer("text", str(value))
    if not math.isfinite(number):
        return Answer("text", str(value))
    return Answer("number", int(number) if number.is_integer() else number)


def canonical_meta(record: RawRecord) -> bytes:
    """Return the json member's own fields as canonical JSON."""
    return canonical_json(record.meta)

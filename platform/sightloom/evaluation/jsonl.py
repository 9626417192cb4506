"""Anyone's benchmark as lines of JSON: questions, or pictures with the objects that are in them."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from sightloom import storage
from sightloom.errors import UserMistake
from sightloom.evaluation.examples import YES_NO, Example
from sightloom.evaluation.objects import Pictured, object_questions
from sightloom.records import Answer, Conversation, InvalidRecord, Message

_MAX_IMAGES = 8  # as many as the endpoint takes in a request
_TYPES = ("choice", "number", "text", "list", "yes_no", "box", "point", "math", "words", "caption")


def from_jsonl(
    path: str, suite: str = "", images: str = "", domain: str = "", limit: int | None = None
) -> list[Example]:
    """Questions from a JSONL file; the first bad line is an error with its number.

    Raises:
        UserMistake: the file or a picture is missing, or a line breaks the form that suites.JsonlSource states.
    """
    folder = images or _folder(path)
    examples: list[Example] = []
    for where, fields in _lines(path):
        if limit is not None and len(examples) >= limit:
            break
        examples.append(_example(fields, where, suite or path, folder, domain))
    if not examples:
        raise UserMistake(f"'{path}' holds no question")
    return examples


def from_objects(
    path: str, negatives: str, per_picture: int, seed: int, suite: str, images: str = "", domain: str = ""
) -> list[Example]:
    """Yes/no questions about objects, from lines `{image, objects}` (objects.object_questions).

    Raises:
        UserMistake: the file or a picture is missing, or a line breaks the form.
    """
    folder = images or _folder(path)
    pictures = []
    for where, fields in _lines(path):
        objects, name = fields.get("objects"), fields.get("image")
        if not isinstance(name, str) or not isinstance(objects, list) or not all(isinstance(o, str) for o in objects):
            raise UserMistake(f"{where}: expected {{image, objects: [words]}}, got the keys {', '.join(fields)}")
        pictures.append(Pictured(name, storage.read_bytes(storage.join(folder, name)), tuple(objects)))
    return object_questions(pictures, negatives, per_picture, seed, suite, domain)


def _lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(storage.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UserMistake(f"{where} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserMistake(f"{where}: expected an object, got {type(fields).__name__}")
        yield where, fields


def _folder(path: str) -> str:
    return path.rsplit("/", 1)[0] if "/" in path else "."


def _example(fields: dict[str, Any], where: str, suite: str, folder: str, domain: str) -> Example:
    for name in ("id", "question"):
        if not isinstance(fields.get(name), (str, int)) or fields[name] == "":
            raise UserMistake(f"{where}: '{name}' is required")
    names = fields.get("images", [fields["image"]] if fields.get("image") else [])
    if not isinstance(names, list) or len(names) > _MAX_IMAGES or not all(isinstance(name, str) for name in names):
        raise UserMistake(f"{where}: 'images' is a list of at most {_MAX_IMAGES} file names, got {names!r}")
    values = fields["answers"] if isinstance(fields.get("answers"), list) else [fields.get("answer")]
    options = fields.get("options") or []
    kind = fields.get("type") or ("choice" if options else "text")
    caption = kind == "caption"
    if caption:
        kind = "text"
    if caption and len(names) > 1:
        raise UserMistake(f"{where}: a caption describes one picture, 'images' lists {len(names)}")
    if kind == "yes_no":
        kind, options = "choice", list(YES_NO)
        values = [str(value).strip().lower() for value in values]
    try:
        answers = [
            Answer.from_json({"kind": kind, "value": value, "options": options, "tolerance": fields.get("tolerance")})
            for value in values
        ]
    except InvalidRecord as error:
        raise UserMistake(f"{where}: {error}", f"types: {', '.join(_TYPES)}") from error
    if not answers:
        raise UserMistake(f"{where}: 'answers' is empty")
    images = [storage.read_bytes(storage.join(folder, name)) for name in names]
    id, its_domain = str(fields["id"]), fields.get("domain") or domain
    if not its_domain:
        raise UserMistake(f"{where}: no domain", "name it in the line, or in the suite's source: `domain: science`")
    task = str(fields.get("task") or ("caption" if caption else kind))
    question = Message("user", str(fields["question"]), bool(images))
    conversation = Conversation(id, "conversation", task, its_domain, (question,), answers[0])
    group = str(fields.get("group") or (hashlib.sha256(b"".join(images)).hexdigest() if images else id))
    return Example(
        id,
        suite,
        its_domain,
        task,
        images[0] if images else None,
        conversation,
        answers[0],
        group,
        also=tuple(answers[1:]),
        caption=caption,
        more_images=tuple(images[1:]),
    )

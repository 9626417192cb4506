"""Suites: the questions a model is measured on, from held-out pictures of curated shards or from anyone's JSONL."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from sightloom import storage
from sightloom.config import Frozen, canonical_json
from sightloom.data.select.expressions import compile_expression
from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.signals.config import ClipScorer
from sightloom.errors import UserMistake
from sightloom.evaluation.result import Decoding, Load, Statistics
from sightloom.records import Answer, Conversation, InvalidRecord, Message

_COLUMNS = (
    "uid", "offset", "size", "kind", "domain", "task", "sha256", "answer_kind", "reasoning_chars", "shard",
)  # fmt: skip
_YES_NO = ("yes", "no")
_TYPES = ("choice", "number", "text", "list", "yes_no", "box", "point", "caption")


@dataclass(frozen=True, slots=True)
class Example:
    """One question with a checkable answer.

    `conversation` ends with the question; `group` ties examples that share a picture (they are resampled together);
    `also` are further right answers; `needs_steps` says that the source shows worked steps for it. A `caption` has no
    right answer: its answers are what people wrote.
    """

    id: str
    suite: str
    domain: str
    task: str
    image: bytes | None
    conversation: Conversation
    answer: Answer
    group: str
    needs_steps: bool = False
    also: tuple[Answer, ...] = ()
    caption: bool = False

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Every right answer."""
        return (self.answer, *self.also)

    @property
    def kind(self) -> str:
        """The answer's kind, `yes_no` where those are its options, or `caption`."""
        if self.caption:
            return "caption"
        return "yes_no" if tuple(option.casefold() for option in self.answer.options) == _YES_NO else self.answer.kind

    @property
    def question(self) -> str:
        """The text of the question itself."""
        return self.conversation.messages[-1].text

    @property
    def image_sha256(self) -> str:
        """SHA-256 of the picture's bytes, empty without a picture."""
        return hashlib.sha256(self.image).hexdigest() if self.image is not None else ""


class ManifestSource(Frozen):
    """Questions of curated shards whose picture is held out from training."""

    kind: Literal["manifest"]
    manifest: str = Field(default="", description="address of manifest.json; empty: the one given on the command line")
    heldout: float = Field(
        default=0.1, gt=0, le=1, description="share of pictures that never train; as in the curriculum"
    )
    where: str = Field(default="", description="expression over the shard table's columns")
    per_domain: int = Field(default=100, ge=1)
    seed: int = 17


class JsonlSource(Frozen):
    """Questions as lines `{id, image?, question, answer|answers, options?, type, domain?, task?, group?}`."""

    kind: Literal["jsonl"]
    path: str
    images: str = Field(default="", description="folder that `image` is relative to; empty: the file's own folder")
    domain: str = Field(default="", description="for lines that name none")
    limit: int | None = Field(default=None, ge=1)


class LogSource(Frozen):
    """Another tool's log of answers that it asked and judged itself: shown beside, never asked, never blocking."""

    kind: Literal["lmms_eval", "vlmevalkit"]
    path: str
    version: str = Field(min_length=1, description="of the tool that wrote the log")
    domain: str = Field(min_length=1)
    task: str = Field(default="", description="empty: the file's own")


class Suite(Frozen):
    """A named list of sources, and how they are asked."""

    name: str
    decoding: Decoding = Decoding()
    statistics: Statistics = Statistics()
    perf: Load | None = Field(default=None, description="how fast the endpoint answers; needs one")
    captions: ClipScorer | None = Field(default=None, description="an open_clip model for CLIPScore of captions")
    sources: tuple[Annotated[ManifestSource | JsonlSource | LogSource, Field(discriminator="kind")], ...] = Field(
        min_length=1
    )


def read_suite(suite: Suite, manifest: str | None = None) -> list[Example]:
    """All examples of a suite.

    Args:
        suite: its description.
        manifest: fills sources of kind manifest that name none.

    Raises:
        UserMistake: a source is missing or damaged, gives no question, or two examples have the same id.
    """
    examples: list[Example] = []
    for index, source in enumerate(suite.sources):
        if isinstance(source, LogSource):
            continue
        if isinstance(source, JsonlSource):
            examples += from_jsonl(source.path, suite.name, source.images, source.domain, source.limit)
            continue
        address = source.manifest or manifest
        if not address:
            raise UserMistake(
                f"suite '{suite.name}', key sources[{index}].manifest: no manifest is given",
                "give --manifest SHARDS/manifest.json, as printed by `sightloom curate`",
            )
        examples += from_manifest(
            address, source.heldout, source.where, source.per_domain, source.seed, suite=suite.name
        )
    for id, count in Counter(example.id for example in examples).most_common(1):
        if count > 1:
            raise UserMistake(f"suite '{suite.name}' has {count} examples with the id '{id}'")
    return examples


def from_manifest(
    manifest_uri: str, heldout: float, where: str = "", per_domain: int = 100, seed: int = 17, suite: str = "heldout"
) -> list[Example]:
    """Questions over held-out pictures, at most `per_domain` of each domain, drawn by a keyed hash of their uid.

    Raises:
        UserMistake: no manifest there, an expression that does not compile, or no question left.
    """
    manifest = read_manifest(manifest_uri)
    table = read_table(manifest, None if where else _COLUMNS)
    mask = pc.and_(pc.equal(table.column("kind"), "conversation"), pc.is_valid(table.column("answer_kind")))
    mask = pc.and_(mask, pa.array(heldout_mask(table, heldout)))
    if where:
        mask = pc.and_(mask, compile_expression(where, table.column_names).mask(table))
    rows = table.filter(mask).select(_COLUMNS).to_pylist()
    if not rows:
        raise UserMistake(
            f"no held-out question in '{manifest_uri}' (held out: {heldout:g} of the pictures; {where or 'all rows'})",
            "the shards need conversations with an `answer`",
        )
    rows.sort(key=lambda row: hashlib.sha256(b"%d:" % seed + row["uid"]).digest())
    taken: Counter[str] = Counter()
    reader = SampleReader(manifest)
    examples = []
    for row in rows:
        taken[row["domain"]] += 1
        if taken[row["domain"]] > per_domain:
            continue
        sample = reader.read(row["shard"], row["offset"], row["size"])
        asked = sample.conversation
        assert asked.answer is not None  # answer_kind says so
        group = row["sha256"] or sample.uid
        needs_steps = (row["reasoning_chars"] or 0) > 0
        prompt = Conversation(sample.uid, "conversation", asked.task, asked.domain, asked.prompt(), asked.answer)
        if sample.image is not None:
            prompt = prompt.with_image()
        examples.append(
            Example(
                sample.uid, suite, row["domain"], row["task"], sample.image, prompt, asked.answer, group, needs_steps
            )
        )
    reader.close()
    return examples


def from_jsonl(
    path: str, suite: str = "", images: str = "", domain: str = "", limit: int | None = None
) -> list[Example]:
    """Questions from a JSONL file; the first bad line is an error with its number.

    Raises:
        UserMistake: the file or a picture is missing, or a line breaks the form above.
    """
    folder = images or (path.rsplit("/", 1)[0] if "/" in path else ".")
    examples: list[Example] = []
    for number, line in enumerate(storage.read_text(path).splitlines(), start=1):
        if not line.strip() or (limit is not None and len(examples) >= limit):
            continue
        where = f"'{path}' line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UserMistake(f"{where} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserMistake(f"{where}: expected an object, got {type(fields).__name__}")
        examples.append(_example(fields, where, suite or path, folder, domain))
    if not examples:
        raise UserMistake(f"'{path}' holds no question")
    return examples


def suite_digest(examples: Iterable[Example]) -> str:
    """SHA-256 over ids, pictures, questions and answers: two measurements with equal digests compare."""
    whole = hashlib.sha256()
    for example in sorted(examples, key=lambda example: example.id):
        turns = [message.to_json() for message in example.conversation.messages]
        answers = [answer.to_json() for answer in example.answers]
        whole.update(canonical_json([example.id, example.image_sha256, turns, answers]))
    return whole.hexdigest()


def _example(fields: dict[str, Any], where: str, suite: str, folder: str, domain: str) -> Example:
    for name in ("id", "question"):
        if not isinstance(fields.get(name), (str, int)) or fields[name] == "":
            raise UserMistake(f"{where}: '{name}' is required")
    names = fields.get("images", [fields["image"]] if fields.get("image") else [])
    if not isinstance(names, list) or len(names) > 1:
        raise UserMistake(f"{where}: a question has at most one picture here, 'images' lists {names!r}")
    values = fields["answers"] if isinstance(fields.get("answers"), list) else [fields.get("answer")]
    options = fields.get("options") or []
    kind = fields.get("type") or ("choice" if options else "text")
    caption = kind == "caption"
    if caption:
        kind = "text"
    if kind == "yes_no":
        kind, options = "choice", list(_YES_NO)
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
    image = storage.read_bytes(storage.join(folder, names[0])) if names else None
    id, its_domain = str(fields["id"]), fields.get("domain") or domain
    if not its_domain:
        raise UserMistake(f"{where}: no domain", "name it in the line, or in the suite's source: `domain: science`")
    task = str(fields.get("task") or ("caption" if caption else kind))
    question = Message("user", str(fields["question"]), image is not None)
    conversation = Conversation(id, "conversation", task, its_domain, (question,), answers[0])
    group = str(fields.get("group") or (hashlib.sha256(image).hexdigest() if image is not None else id))
    return Example(
        id, suite, its_domain, task, image, conversation, answers[0], group, also=tuple(answers[1:]), caption=caption
    )

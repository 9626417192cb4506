"""Suites: the questions a model is measured on, from held-out pictures of curated shards or from anyone's JSONL."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from sightloom.config import Frozen
from sightloom.data.select.expressions import compile_expression
from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.signals.config import ClipScorer
from sightloom.errors import UserMistake
from sightloom.evaluation.examples import Example
from sightloom.evaluation.jsonl import from_jsonl, from_objects
from sightloom.evaluation.objects import Negatives
from sightloom.evaluation.result import Decoding, Load, Statistics
from sightloom.records import Answer, Conversation

_COLUMNS = (
    "uid", "offset", "size", "kind", "domain", "task", "sha256", "answer_kind", "reasoning_chars", "shard",
)  # fmt: skip


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
    """Questions as lines `{id, image|images?, question, answer|answers, options?, type, domain?, task?, group?}`."""

    kind: Literal["jsonl"]
    path: str
    images: str = Field(default="", description="folder that `image` is relative to; empty: the file's own folder")
    domain: str = Field(default="", description="for lines that name none")
    limit: int | None = Field(default=None, ge=1)


class ObjectsSource(Frozen):
    """Yes/no questions about objects (POPE), from lines `{image, objects: [every kind in the picture]}`."""

    kind: Literal["objects"]
    path: str
    images: str = Field(default="", description="folder that `image` is relative to; empty: the file's own folder")
    negatives: Negatives
    per_picture: int = Field(default=3, ge=1, description="questions of each answer")
    domain: str = "hallucination"
    seed: int = 17


class ProceduralSource(Frozen):
    """Questions over pictures that are drawn when they are asked for; they need no file."""

    kind: Literal["procedural"]
    generator: str = "five-domains"
    per_domain: int = Field(default=100, ge=1)
    seed: int = Field(default=17, description="of the drawing: take another one than the training corpus's")


class LogSource(Frozen):
    """Another tool's log of answers that it asked and judged itself: shown beside, never asked, never blocking."""

    kind: Literal["lmms_eval", "vlmevalkit"]
    path: str
    version: str = Field(min_length=1, description="of the tool that wrote the log")
    domain: str = Field(min_length=1)
    task: str = Field(default="", description="empty: the file's own")


Source = ManifestSource | JsonlSource | ObjectsSource | ProceduralSource | LogSource
Generator = Callable[[ProceduralSource, str], list[Example]]  # the source and the suite's name


class Suite(Frozen):
    """A named list of sources, and how they are asked."""

    name: str
    decoding: Decoding = Decoding()
    statistics: Statistics = Statistics()
    perf: Load | None = Field(default=None, description="how fast the endpoint answers; needs one")
    captions: ClipScorer | None = Field(default=None, description="an open_clip model for CLIPScore of captions")
    sources: tuple[Annotated[Source, Field(discriminator="kind")], ...] = Field(min_length=1)


def read_suite(
    suite: Suite, manifest: str | None = None, generators: Mapping[str, Generator] | None = None
) -> list[Example]:
    """All examples of a suite.

    Args:
        suite: its description.
        manifest: fills sources of kind manifest that name none.
        generators: those of procedural sources, by name.

    Raises:
        UserMistake: a source is missing or damaged, gives no question, or two examples have the same id.
    """
    examples: list[Example] = []
    for index, source in enumerate(suite.sources):
        examples += _read(source, f"suite '{suite.name}', key sources[{index}]", suite.name, manifest, generators or {})
    for id, count in Counter(example.id for example in examples).most_common(1):
        if count > 1:
            raise UserMistake(f"suite '{suite.name}' has {count} examples with the id '{id}'")
    return examples


def _read(
    source: Source, where: str, suite: str, manifest: str | None, generators: Mapping[str, Generator]
) -> list[Example]:
    if isinstance(source, LogSource):
        return []
    if isinstance(source, JsonlSource):
        return from_jsonl(source.path, suite, source.images, source.domain, source.limit)
    if isinstance(source, ObjectsSource):
        return from_objects(
            source.path, source.negatives, source.per_picture, source.seed, suite, source.images, source.domain
        )
    if isinstance(source, ProceduralSource):
        if source.generator not in generators:
            known = ", ".join(generators) or "none here"
            raise UserMistake(f"{where}.generator: '{source.generator}' is not known", f"known: {known}")
        return generators[source.generator](source, suite)
    address = source.manifest or manifest
    if not address:
        raise UserMistake(
            f"{where}.manifest: no manifest is given",
            "give --manifest SHARDS/manifest.json, as printed by `sightloom curate`",
        )
    return from_manifest(address, source.heldout, source.where, source.per_domain, source.seed, suite)


def from_manifest(
    manifest_uri: str,
    heldout: float,
    where: str = "",
    per_domain: int = 100,
    seed: int = 17,
    suite: str = "heldout",
    captions: bool = False,
) -> list[Example]:
    """Questions over held-out pictures, at most `per_domain` of each domain, drawn by a keyed hash of their uid.

    With `captions` the held-out pairs instead: pictures to describe, whose captions are the references.

    Raises:
        UserMistake: no manifest there, an expression that does not compile, or nothing left to ask.
    """
    manifest = read_manifest(manifest_uri)
    table = read_table(manifest, None if where else _COLUMNS)
    kinds = table.column("kind")
    mask = pc.and_(pc.equal(kinds, "conversation"), pc.is_valid(table.column("answer_kind")))
    if captions:
        mask = pc.equal(kinds, "pair")
    mask = pc.and_(mask, pa.array(heldout_mask(table, heldout)))
    if where:
        mask = pc.and_(mask, compile_expression(where, table.column_names).mask(table))
    rows = table.filter(mask).select(_COLUMNS).to_pylist()
    if not rows:
        raise UserMistake(
            f"no held-out {'pair' if captions else 'question'} in '{manifest_uri}' "
            f"(held out: {heldout:g} of the pictures; {where or 'all rows'})",
            "the shards need pictures with captions" if captions else "the shards need conversations with an `answer`",
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
        answer = Answer("text", sample.text or "") if captions else asked.answer
        assert answer is not None  # answer_kind says so
        task = "caption" if captions else row["task"]
        prompt = Conversation(sample.uid, "conversation", asked.task, asked.domain, asked.prompt(), answer)
        if sample.image is not None:
            prompt = prompt.with_image()
        examples.append(
            Example(
                id=sample.uid,
                suite=suite,
                domain=row["domain"],
                task=task,
                image=sample.image,
                conversation=prompt,
                answer=answer,
                group=row["sha256"] or sample.uid,
                needs_steps=not captions and (row["reasoning_chars"] or 0) > 0,
                caption=captions,
            )
        )
    reader.close()
    return examples

"""Rollouts as rows of a table: what is needed to train on them again, and to look at them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.model.chat import Document
from sightloom.model.generation import Generation

PARTS = ("accuracy", "format", "length")


@dataclass(frozen=True, slots=True)
class Response:
    """One scored response; `parts` are the reward's, before weighting, each in [0, 1] or NaN; `detail` says why."""

    generation: Generation
    seed: int
    parts: dict[str, float]
    reward: float
    detail: str


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one prompt."""

    row: int
    uid: str
    task: str
    domain: str
    prompt: Document
    responses: tuple[Response, ...]
    advantages: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the responses that could be scored; NaN where none could."""
        values = [r.parts["accuracy"] for r in self.responses if r.parts["accuracy"] == r.parts["accuracy"]]
        return sum(values) / len(values) if values else float("nan")


def write(uri: str, step: int, groups: Sequence[Group]) -> None:
    """Write a step's responses, kept or not."""
    rows = [
        {
            "uid": group.uid,
            "group": group.row,
            "sample": sample,
            "task": group.task,
            "domain": group.domain,
            "version": step,
            "seed": response.seed,
            "token_ids": list(response.generation.token_ids),
            "logprobs": list(response.generation.logprobs),
            "forced": list(response.generation.forced),
            "finish": response.generation.finish,
            **{f"reward_{name}": response.parts[name] for name in PARTS},
            "reward": response.reward,
            "detail": response.detail,
            "length": response.generation.num_tokens,
            "advantage": advantage,
            "text": response.generation.text,
        }
        for group in groups
        for sample, (response, advantage) in enumerate(zip(group.responses, group.advantages, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write(uri, buffer.getvalue())


def read(uri: str) -> dict[int, tuple[Response, ...]] | None:
    """A step's responses in order, by row of the corpus; None where the step was not written."""
    if not storage.exists(uri):
        return None
    found: dict[int, list[Response]] = {}
    for row in pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist():
        responses = found.setdefault(row["group"], [])
        if row["sample"] == len(responses):  # a prompt that came twice in a step was answered alike
            responses.append(_response(row))
    return {group: tuple(responses) for group, responses in found.items()}


def _response(row: dict[str, Any]) -> Response:
    generation = Generation(
        tuple(row["token_ids"]), tuple(row["logprobs"]), row["finish"], row["text"], tuple(row["forced"])
    )
    parts = {name: row[f"reward_{name}"] for name in PARTS}
    return Response(generation, row["seed"], parts, row["reward"], row["detail"])


_SCHEMA = pa.schema(
    [
        ("uid", pa.string()), ("group", pa.int64()), ("sample", pa.int32()), ("task", pa.string()),
        ("domain", pa.string()), ("version", pa.int64()), ("seed", pa.int64()), ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())), ("forced", pa.list_(pa.bool_())), ("finish", pa.string()),
        *((f"reward_{name}", pa.float64()) for name in PARTS), ("reward", pa.float64()), ("detail", pa.string()),
        ("length", pa.int32()), ("advantage", pa.float64()), ("text", pa.string()),
    ]
)  # fmt: skip

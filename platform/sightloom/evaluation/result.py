"""What an evaluation found: one row an example, one measure a domain, and their forms on disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import Field, model_validator

from sightloom import storage
from sightloom.config import Frozen, canonical_json
from sightloom.errors import UserMistake

PerfMetric = Literal["ttft_p95_s", "tpot_p95_s", "tokens_per_s"]
PERF_METRICS: Final[tuple[PerfMetric, ...]] = get_args(PerfMetric)


class Decoding(Frozen):
    """How answers are drawn: greedily, with or without thinking.

    A `thinking_token_budget` opens a think block, as it does in the API (serving's `resolve`): otherwise a model in
    this process and the same one behind an endpoint would be asked in two ways.
    """

    thinking: bool | None = Field(
        default=None, description="true opens a think block, false closes it, null: as the model does"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="thinking and answer together")
    thinking_token_budget: int | None = Field(default=None, ge=1, description="tokens of thinking; it is then true")

    @model_validator(mode="before")
    @classmethod
    def _a_budget_opens_thinking(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("thinking_token_budget") is None:
            return value
        if value.get("thinking") is False:
            raise ValueError("a thinking_token_budget means nothing with 'thinking: false'; leave one of them out")
        return {**value, "thinking": True}


class Statistics(Frozen):
    """How uncertainty is stated."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=10_000, ge=100)
    seed: int = 17


class Load(Frozen):
    """What is sent: `requests` streams of the suite's own questions at each number of clients."""

    requests: int = Field(default=200, ge=10)
    clients: tuple[int, ...] = Field(default=(1, 8), min_length=1)
    max_new_tokens: int = Field(default=64, ge=2)
    warm_up: int = Field(default=8, ge=0)


@dataclass(frozen=True, slots=True)
class Perf:
    """At one number of clients: seconds to the first token and a token after it, and tokens a second of all."""

    clients: int
    n: int
    errors: int
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A share with its two-sided confidence interval."""

    metric: str
    value: float
    n: int
    ci: tuple[float, float]


@dataclass(frozen=True, slots=True)
class DomainMeasure(Measure):
    """A domain's accuracy (CIDEr-D where it holds captions alone), what chance gives, and what remains where steps are
    needed; `metrics`: every metric that its questions have."""

    chance_constant: float
    chance_uniform: float | None
    needs_steps: Measure | None
    metrics: dict[str, Measure]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answered: the model's name or address, its registered version, the SHA-256 of its manifest; "": not known."""

    model: str
    version: str = ""
    digest: str = ""

    @property
    def reference(self) -> str:
        """`name:13`, empty where no version is known."""
        return f"{self.model}:{self.version}" if self.version else ""


@dataclass(frozen=True, slots=True)
class Row:
    """One example, asked and judged.

    `kind` is the answer's (choice, number, …), yes_no or caption. `scores`: `reward` in [0, 1] and `relaxed` (a number
    within 5 %) of an answer; `cider` (and `clip_score`) of a caption. `source` names the tool and version whose log the
    row was taken from, and is empty for a question that was asked here. `model`, `version` and `digest` say who
    answered (`Identity`); they are empty where that is the run's own business, as in training.
    """

    suite: str
    id: str
    domain: str
    task: str
    kind: str
    group: str
    needs_steps: bool
    image_sha256: str
    prompt: str
    expected: str
    prediction: str
    reasoning: str | None
    right: bool
    scores: dict[str, float]
    thinking: Literal["complete", "truncated", "off", "malformed"] | str
    well_formed: bool
    tokens: int
    latency_ms: float
    finish: str
    error: str | None
    source: str
    model: str = ""
    version: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A whole evaluation.

    `format`: shares of well-formed answers, of answers at all, and of thinking within its budget. `needs_steps`:
    accuracy where the source shows steps. `imported`: measures of other tools' logs, a group a task; they count nowhere
    else. `perf`: the endpoint's speed, where the suite asks for it.
    """

    overall: Measure
    domains: dict[str, DomainMeasure]
    tasks: dict[str, Measure]
    needs_steps: Measure | None
    format: dict[str, Measure]
    imported: dict[str, dict[str, Measure]]
    chance_constant: float
    chance_uniform: float | None
    errors: int
    suite: str
    suite_digest: str
    decoding: Decoding
    statistics: Statistics
    seconds: float
    rows: tuple[Row, ...]
    perf: tuple[Perf, ...] = ()

    def by(self, who: Identity) -> "Result":
        """The same result with rows that name who answered; other tools' rows stay as they are."""
        return replace(self, rows=tuple(row if row.source else _named(row, who) for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """The object that `sightloom evaluate --json` prints: without the rows."""
        return {
            "overall": self.overall.value,
            "overall_ci": list(self.overall.ci),
            "n": self.overall.n,
            "domains": {name: asdict(measure) for name, measure in self.domains.items()},
            "tasks": {name: asdict(measure) for name, measure in self.tasks.items()},
            "needs_steps": None if self.needs_steps is None else asdict(self.needs_steps),
            "format": {name: asdict(measure) for name, measure in self.format.items()},
            "imported": {
                name: {metric: asdict(measure) for metric, measure in its.items()}
                for name, its in self.imported.items()
            },
            "chance": {"constant": self.chance_constant, "uniform": self.chance_uniform},
            "errors": self.errors,
            "suite": self.suite,
            "suite_digest": self.suite_digest,
            "decoding": self.decoding.model_dump(),
            "statistics": self.statistics.model_dump(),
            "seconds": round(self.seconds, 3),
            "perf": [asdict(measured) for measured in self.perf],
        }

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Flat names for tracking: `eval/<domain>/<metric>`, `eval/format/…`, `eval/overall`, `eval/needs_steps`."""
        flat = {
            f"{prefix}/{name}/{metric}": measure.value
            for name, its in self.domains.items()
            for metric, measure in its.metrics.items()
        }
        flat |= {f"{prefix}/format/{name}": measure.value for name, measure in self.format.items()}
        flat |= {
            f"{prefix}/imported/{name}/{metric}": measure.value
            for name, its in self.imported.items()
            for metric, measure in its.items()
        }
        flat[f"{prefix}/overall"] = self.overall.value
        for measured in self.perf:
            for name in PERF_METRICS:
                flat[f"{prefix}/perf/{name}/clients_{measured.clients}"] = getattr(measured, name)
        if self.needs_steps is not None:
            flat[f"{prefix}/needs_steps"] = self.needs_steps.value
        return flat


def _named(row: Row, who: Identity) -> Row:
    return replace(row, model=who.model, version=who.version, digest=who.digest)


def save(result: Result, folder: str) -> None:
    """Write `rows.jsonl`, then `result.json`: where the latter is, the former is whole."""
    lines = [canonical_json(asdict(row)) for row in result.rows]
    storage.write(storage.join(folder, "rows.jsonl"), b"\n".join(lines) + b"\n")
    storage.write(storage.join(folder, "result.json"), json.dumps(result.to_json(), indent=1).encode())


def read_rows(folder: str | Path) -> tuple[Row, ...]:
    """Read back the rows of a saved result; UserMistake where there is none."""
    address = storage.join(str(folder), "rows.jsonl")
    try:
        return tuple(Row(**json.loads(line)) for line in storage.read_text(address).splitlines() if line)
    except (ValueError, TypeError) as error:
        raise UserMistake(f"'{address}' does not hold the rows of an evaluation: {error}") from error


def by_domain(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each domain, in order of name."""
    names = sorted({row.domain for row in rows})
    return {name: [row for row in rows if row.domain == name] for name in names}

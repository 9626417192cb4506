"""The verb: a suite, and a checkpoint or an endpoint, to a result with its rows and its report on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sightloom import storage
from sightloom.config import load
from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import Answerer, LocalAnswerer
from sightloom.evaluation.best_of import BestOf
from sightloom.evaluation.clip import caption_cosines
from sightloom.evaluation.endpoint import EndpointAnswerer
from sightloom.evaluation.examples import Example
from sightloom.evaluation.imported import read_imported
from sightloom.evaluation.perf import measure_load
from sightloom.evaluation.remember import Remembering
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Identity, Result, Row, save
from sightloom.evaluation.runner import evaluate
from sightloom.evaluation.suites import Generator, Suite, read_suite
from sightloom.model.load import load as load_model
from sightloom.model.reward import RewardModel
from sightloom.progress import Progress


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: a model folder (or hub id, or object-store address), or a running endpoint.

    `known`: which registered version the checkpoint is.
    """

    checkpoint: str = ""
    endpoint: str = ""
    model: str = ""
    key: str = ""
    best_of: int = 1
    reward_model: str = ""
    known: Identity | None = None

    def __post_init__(self) -> None:
        if (self.best_of > 1) != bool(self.reward_model):
            raise UserMistake("best of n needs both --best-of N (2 or more) and --reward-model DIR")
        if self.reward_model and not self.checkpoint:
            raise UserMistake("--best-of samples from a --checkpoint; an endpoint answers once")
        if bool(self.checkpoint) == bool(self.endpoint):
            raise UserMistake("name who is asked: either --checkpoint DIR or --endpoint URL")

    @property
    def name(self) -> str:
        """For titles."""
        if self.known is not None:
            return self.known.reference
        return self.checkpoint or f"{self.model or 'model'} at {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was found, who answered, and the report as a page."""

    result: Result
    who: Identity
    page: str


def run(
    suite_path: str | Path,
    target: Target,
    manifest: str | None,
    out: str | None,
    overrides: list[str],
    progress: Progress,
    private: str = "",
    generators: Mapping[str, Generator] | None = None,
) -> Evaluated:
    """Evaluate and, with `out`, write `rows.jsonl`, `report.html` and then `result.json` there.

    `private` is the address of an endpoint that serves the checkpoint; it is asked, and nothing is loaded here.

    Raises:
        UserMistake: a bad suite, manifest, model, address or folder, before the first question where possible.
    """
    suite = load(Suite, suite_path, overrides)
    if out:
        storage.ensure_writable(out)
    if suite.perf is not None and not (target.endpoint or private):
        raise UserMistake(
            f"suite '{suite.name}' measures speed (`perf`), which needs an endpoint", "give --endpoint URL, or --serve"
        )
    with progress.step("read suite"):
        examples = read_suite(suite, manifest, generators)
        imported = read_imported(suite)
    budget = suite.decoding.thinking_token_budget
    with progress.step("reach endpoint" if target.endpoint or private else "load model"):
        asked = EndpointAnswerer(private, thinking_budget=budget) if private else answerer(target, budget)
    who = identity(target, asked)
    result = measure(suite, examples, imported, asked, progress, target.key).by(who)
    facts = {"checkpoint" if target.checkpoint else "endpoint": target.name, "manifest": manifest or "",
             "version": who.reference, "digest": who.digest}  # fmt: skip
    page = render(Subject(f"Evaluation of {target.name}", facts), result, examples)
    if out:
        storage.write(storage.join(out, "report.html"), page.encode())
        save(result, out)
    return Evaluated(result, who, page)


def identity(target: Target, asked: Answerer) -> Identity:
    """Who answers: what is known of the checkpoint, the digest of a folder's manifest, or what an endpoint says."""
    if target.known is not None:
        return target.known
    if isinstance(asked, EndpointAnswerer) and target.endpoint:
        return asked.identity()
    listed = Path(target.checkpoint, "manifest.json")
    return Identity(target.checkpoint, "", storage.sha256_file(listed) if listed.is_file() else "")


def measure(
    suite: Suite,
    examples: list[Example],
    imported: Sequence[Row],
    asked: Answerer,
    progress: Progress,
    key: str = "",
) -> Result:
    """Everything that a suite asks for: answers, captions, and the endpoint's speed where it is one."""
    cosines = None
    if suite.captions is not None and any(example.kind == "caption" for example in examples):
        with progress.step("load CLIP model"):
            cosines = caption_cosines(suite.captions)
    result = evaluate(examples, asked, suite.decoding, suite.statistics, progress, cosines, imported)
    asked = asked.asked if isinstance(asked, Remembering) else asked
    if suite.perf is None or not isinstance(asked, EndpointAnswerer):
        return result
    with progress.step("measure speed"):
        return replace(result, perf=measure_load(asked.url, asked.model, key, examples, suite.perf))


def answerer(target: Target, thinking_budget: int | None) -> Answerer:
    """Whoever answers for a target."""
    if target.endpoint:
        return EndpointAnswerer(target.endpoint, target.model, target.key, thinking_budget)
    vlm = load_model(target.checkpoint)
    if target.reward_model:
        return BestOf(vlm, RewardModel(target.reward_model), target.best_of, thinking_budget)
    return LocalAnswerer(vlm, thinking_budget=thinking_budget)

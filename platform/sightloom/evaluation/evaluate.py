"""The verb: a suite, and a checkpoint or an endpoint, to a result with its rows and its report on disk."""

from dataclasses import dataclass
from pathlib import Path

from sightloom import storage
from sightloom.config import load
from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import Answerer, EndpointAnswerer, LocalAnswerer
from sightloom.evaluation.best_of import BestOf
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Result, save
from sightloom.evaluation.runner import evaluate
from sightloom.evaluation.suites import Example, Suite, read_suite
from sightloom.model.load import load as load_model
from sightloom.model.reward import RewardModel
from sightloom.progress import Progress


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: a model folder (or hub id, or object-store address), or a running endpoint."""

    checkpoint: str = ""
    endpoint: str = ""
    model: str = ""
    key: str = ""
    best_of: int = 1
    reward_model: str = ""

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
        return self.checkpoint or f"{self.model or 'model'} at {self.endpoint}"


def run(
    suite_path: str | Path,
    target: Target,
    manifest: str | None,
    out: str | None,
    overrides: list[str],
    progress: Progress,
) -> Result:
    """Evaluate and, with `out`, write `rows.jsonl`, `report.html` and then `result.json` there.

    Raises:
        UserMistake: a bad suite, manifest, model, address or folder, before the first question where possible.
    """
    suite = load(Suite, suite_path, overrides)
    if out:
        storage.ensure_writable(out)
    with progress.step("read suite"):
        examples = read_suite(suite, manifest)
    with progress.step("load model" if target.checkpoint else "reach endpoint"):
        asked = answerer(target, suite.decoding.thinking_token_budget)
    result = evaluate(examples, asked, suite.decoding, suite.statistics, progress)
    if out:
        facts = {"checkpoint" if target.checkpoint else "endpoint": target.name, "manifest": manifest or ""}
        write_report(out, Subject(f"Evaluation of {target.name}", facts), result, examples)
        save(result, out)
    return result


def answerer(target: Target, thinking_budget: int | None) -> Answerer:
    """Whoever answers for a target."""
    if target.endpoint:
        return EndpointAnswerer(target.endpoint, target.model, target.key, thinking_budget)
    vlm = load_model(target.checkpoint)
    if target.reward_model:
        return BestOf(vlm, RewardModel(target.reward_model), target.best_of, thinking_budget)
    return LocalAnswerer(vlm, thinking_budget=thinking_budget)


def write_report(folder: str, subject: Subject, result: Result, examples: list[Example]) -> str:
    """Write `report.html` and return its address."""
    address = storage.join(folder, "report.html")
    storage.write(address, render(subject, result, examples).encode())
    return address

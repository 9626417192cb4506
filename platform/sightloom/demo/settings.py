"""The demo's numbers: the whole road, and the same road with tiny numbers."""

from dataclasses import dataclass
from pathlib import Path

from sightloom.errors import UserMistake

_PIPELINES = Path(__file__).parents[3] / "pipelines"


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a demo's result.

    `num_pairs` captioned pictures and `num_pictures` with questions are drawn beside `num_trusted` clean pairs for the
    filter network; `step_share` scales the steps of every training stage.
    """

    seed: int
    quick: bool
    num_pairs: int
    num_pictures: int
    num_trusted: int
    filter_steps: int
    step_share: float
    eval_per_domain: int


def settings(seed: int, quick: bool) -> Settings:
    """The numbers of the whole road, or of the short one, whose figures mean nothing."""
    if seed < 0:
        raise UserMistake(f"--seed must not be negative, got {seed}")
    if quick:
        return Settings(seed, True, 1200, 400, 600, 20, 0.02, 20)
    return Settings(seed, False, 12_000, 5000, 3000, 120, 1.0, 200)


def pipeline_file(name: str) -> Path:
    """A file of `pipelines/` in the checkout that the demo runs in."""
    file = _PIPELINES / name
    if not file.is_file():
        raise UserMistake(f"the demo needs '{file}'", "run it from a checkout of the project: make demo")
    return file

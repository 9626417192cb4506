from pathlib import Path

import pytest

from sightloom.config import load
from sightloom.errors import UserMistake
from sightloom.training.curriculum import Curriculum
from sightloom.training.run_options import ParallelOptions, RayOptions

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"


def test_workers_may_be_a_number_or_the_least_and_the_most() -> None:
    fixed, elastic = RayOptions(workers=3), RayOptions(workers=(1, 4))
    assert (fixed.elastic, fixed.most_workers) == (False, 3)
    assert (elastic.elastic, elastic.most_workers) == (True, 4)
    assert load(Curriculum, NANO, ["data.manifest=x", "ray.workers=[1,2]"]).ray.workers == (1, 2)


def test_a_model_shared_over_all_workers_follows_their_number() -> None:
    shared = ParallelOptions(shard="all")
    assert [(shared.copies(n), shared.holders(n)) for n in (1, 2, 8)] == [(1, 1), (1, 2), (1, 8)]
    pairs = ParallelOptions(shard=2)
    assert [(pairs.copies(n), pairs.holders(n)) for n in (2, 8)] == [(1, 2), (4, 2)]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ray.workers=[3,2]"], r"the least \(3\) is above the most \(2\)"),
        (["ray.workers=[0,2]"], r"greater than or equal to 1|ray\.workers"),
        (["ray.workers=[2,4]", "parallel.shard=2"], r"elastic workers .* need replicate null and shard 1 or all"),
        (["ray.workers=[2,4]", "parallel.replicate=4"], r"elastic workers .* need replicate null and shard 1 or all"),
        (["checkpoint.keep=0"], r"checkpoint\.keep"),
        (["checkpoint.evry_steps=5"], r"every_steps"),
    ],
)
def test_what_cannot_take_effect_is_refused_before_anything_starts(overrides: list[str], said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        load(Curriculum, NANO, ["data.manifest=x", *overrides])

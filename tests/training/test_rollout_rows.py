import math
from pathlib import Path

import torch

from sightloom.model.chat import Document
from sightloom.model.generation import Generation
from sightloom.training.parallel import Workers
from sightloom.training.rollout_numbers import rollout_numbers
from sightloom.training.rollout_rows import Group, Response, read, write


def group(row: int, *accuracies: float, domain: str = "ui") -> Group:
    prompt = Document(torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool))
    responses = tuple(
        Response(
            Generation((5, 6, 7), (-0.1, -1 / 3, 0.0), "stop", "four </think> 4", (False, True, False)),
            2**62 - 1 - number,
            {"accuracy": accuracy, "format": 1.0, "length": 0.5},
            0.8 * accuracy + 0.15,
            "the scorer died with code 7" if math.isnan(accuracy) else "right",
        )
        for number, accuracy in enumerate(accuracies)
    )
    return Group(row, f"u{row}", "count", domain, prompt, responses, tuple(0.25 for _ in accuracies))


def test_what_is_read_back_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    uri = str(tmp_path / "step.parquet")
    assert read(uri) is None
    groups = [group(9, 1.0, 0.0), group(4, 0.5, 1.0)]
    write(uri, 3, [*groups, groups[0]])  # a small corpus gives a prompt twice in a step
    assert read(uri) == {each.row: each.responses for each in groups}


def test_a_step_without_a_group_is_written_and_read_back_too(tmp_path: Path) -> None:
    write(str(tmp_path / "none.parquet"), 0, [])
    assert read(str(tmp_path / "none.parquet")) == {}


def test_an_unscored_response_is_counted_and_is_in_no_mean() -> None:
    groups = [group(1, 1.0, math.nan), group(2, 0.0, 0.0, domain="chart")]
    numbers = rollout_numbers(groups, groups[:1], 2.0, Workers(0, 1))
    assert numbers["rollout/unscored"] == 1 and numbers["rollout/accuracy"] == 1 / 3
    assert numbers["rollout/ui/accuracy"] == 1 and numbers["rollout/chart/accuracy"] == 0
    assert numbers["rollout/kept_share"] == 0.5 and numbers["rollout/flat_share"] == 0.5
    assert numbers["rollout/length"] == 3 and numbers["rollout/length_reward"] == 0.5
    assert numbers["rollout/tokens_per_s"] == 6

from collections.abc import Iterator

import pytest

from sightloom.model.generation import Finish, Generation
from sightloom.records import Answer
from sightloom.training.objective_options import RlObjective
from sightloom.training.rollouts import rewarded
from sightloom.training.scoring import Scorers


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    found = Scorers()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("text", "finish", "accuracy"),
    [
        ("red one, red two\n</think>\n\n2", "stop", 1.0),
        ("red one, red two\n</think>\n\n2", "length", 0.0),  # going on until the limit is no answer
        ("red one, red two\n</think>\n\n3", "stop", 0.0),
        ("the answer is 2", "stop", 0.0),  # all of it is thinking
    ],
)
def test_only_a_finished_answer_earns_its_accuracy(
    scorers: Scorers, text: str, finish: Finish, accuracy: float
) -> None:
    generation = Generation((1, 2, 3), (-0.1,) * 3, finish, text, (False,) * 3)
    response = rewarded(generation, 5, Answer("number", 2), "count", RlObjective(kind="rl"), scorers)
    assert response.parts["accuracy"] == accuracy
    assert (response.detail == "cut off by the limit") == (finish == "length")

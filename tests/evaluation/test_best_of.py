"""Best of n by a judge."""

from pathlib import Path
from typing import Any

import pytest

from sightloom.errors import UserMistake
from sightloom.evaluation.best_of import BestOf
from sightloom.evaluation.evaluate import Target
from sightloom.evaluation.examples import Example
from sightloom.model.load import load
from sightloom.records import Answer, Conversation, Message


class Longest:
    """A judge that likes words; it remembers what it was shown."""

    def __init__(self, sign: int = 1) -> None:
        self.sign, self.seen = sign, []  # type: ignore[var-annotated]

    def score(self, conversation: Conversation, image: Any) -> float:
        assert conversation.messages[-1].role == "assistant"
        self.seen.append(conversation.messages[-1].text)
        return self.sign * float(len(conversation.messages[-1].text))


def example(n: int) -> Example:
    asked = Conversation(f"q{n}", "conversation", "qa", "ui", (Message("user", "how left of the circle"),))
    return Example(f"q{n}", "s", "ui", "qa", None, asked, Answer("text", "x"), f"q{n}")


def test_the_judge_chooses_among_answers_that_come_again_with_the_same_seeds(nano: Path) -> None:
    vlm, examples = load(str(nano)), [example(n) for n in range(3)]
    judge, miser = Longest(), Longest(-1)
    long = BestOf(vlm, judge, 6).answer(examples, None, 6)
    short = BestOf(vlm, miser, 6).answer(examples, None, 6)
    assert [prediction.id for prediction in long] == ["q0", "q1", "q2"]
    assert judge.seen == miser.seen and len(set(judge.seen)) > 6  # the same samples, several a question
    for best, worst in zip(long, short, strict=True):
        assert best.content in judge.seen and len(best.content) >= len(worst.content)
    assert any(len(best.content) > len(worst.content) for best, worst in zip(long, short, strict=True))


def test_best_of_n_needs_a_number_a_judge_and_a_checkpoint() -> None:
    with pytest.raises(UserMistake, match="needs both --best-of N"):
        Target(checkpoint="model", best_of=4)
    with pytest.raises(UserMistake, match="needs both --best-of N"):
        Target(checkpoint="model", reward_model="judge")
    with pytest.raises(UserMistake, match="samples from a --checkpoint"):
        Target(endpoint="http://127.0.0.1:1", best_of=4, reward_model="judge")

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sightloom.evaluation.answerers import Prediction, failed
from sightloom.evaluation.examples import Example
from sightloom.evaluation.remember import Remembering
from sightloom.evaluation.result import Decoding

from .conftest import example


class Counts:
    """Answers `red`, and fails for what is in `broken`."""

    def __init__(self) -> None:
        self.asked, self.broken = 0, {"none"}

    def answer(
        self, examples: Sequence[Example], thinking: bool | None, max_new_tokens: int, done: Callable[[int], None]
    ) -> list[Prediction]:
        self.asked += len(examples)
        return [
            failed(e.id, "down", 0.0)
            if e.id in self.broken
            else Prediction(e.id, "red", "so", "complete", "stop", 3, 2.5)
            for e in examples
        ]


def test_only_the_same_model_questions_and_decoding_are_remembered(tmp_path: Path) -> None:
    who, some = Counts(), [example("a"), example("b", "blue")]

    def ask(digest: str = "d" * 64, decoding: Decoding = Decoding(), turn: int = 1) -> list[Prediction]:  # noqa: B008
        return Remembering(who, tmp_path, digest, decoding).answer(some[::turn], None, 8)

    first = ask()
    assert who.asked == 2
    assert ask() == first and ask(turn=-1) == first[::-1], "in the order of the questions"
    assert who.asked == 2
    for change in ({"digest": "e" * 64}, {"decoding": Decoding(max_new_tokens=9)}):
        ask(**change)  # type: ignore[arg-type]
    some.append(example("c"))
    ask()
    assert who.asked == 2 + 2 + 2 + 3
    ask(digest="")
    ask(digest="")
    assert who.asked == 9 + 3 + 3, "files that nobody can prove are asked each time"


def test_failures_and_damaged_files_are_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    who, some = Counts(), [example("a"), example("b")]
    who.broken = {"b"}
    remembering = Remembering(who, tmp_path, "d" * 64, Decoding())
    assert remembering.answer(some, None, 8)[1].error == "down"
    who.broken = set()
    assert remembering.answer(some, None, 8)[1].error is None and who.asked == 4
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text()[:-30])
    assert remembering.answer(some, None, 8)[0].content == "red" and who.asked == 6
    assert "damaged" in caplog.text
    assert remembering.answer(some, None, 8)[0].content == "red" and who.asked == 6

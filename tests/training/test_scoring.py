import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightloom.records import Answer
from sightloom.training.scoring import Scorers

THREE = Answer("number", 3)


@pytest.fixture
def scorers(tmp_path: Path) -> Iterator[Scorers]:
    """The scoring process with a scorer that hangs, dies or raises when the content says so."""
    program = tmp_path / "faulty.py"
    program.write_text(
        "import os, runpy, time\n"
        "import sightloom.objectives.rewards as rewards\n"
        "real = rewards.score\n"
        "def score(content, answer):\n"
        "    if content == 'hang': time.sleep(600)\n"
        "    if content == 'die': os._exit(7)\n"
        "    if content == 'raise': raise ZeroDivisionError('no scale')\n"
        "    return real(content, answer)\n"
        "rewards.score = score\n"
        "runpy.run_module('sightloom.training.scorer', run_name='__main__')\n"
    )
    found = Scorers(limit_s=5.0, program=(str(program),))
    yield found
    found.close()


def test_a_scorer_that_raises_dies_or_hangs_costs_one_answer_with_a_reason(scorers: Scorers) -> None:
    assert scorers.score("3", THREE).value == 1
    said = {content: scorers.score(content, THREE) for content in ("raise", "die", "4")}
    assert math.isnan(said["raise"].value) and said["raise"].detail == "ZeroDivisionError: no scale"
    assert math.isnan(said["die"].value) and "died with code 7" in said["die"].detail
    assert said["4"].value == 0
    hung = scorers.score("hang", THREE)
    assert math.isnan(hung.value) and hung.detail == "the scorer took longer than 5 s"
    assert scorers.score("three", THREE).value == 1


def test_a_whole_answer_travels_to_the_scorer_and_back() -> None:
    scorers = Scorers()
    try:
        assert scorers.score("Total:\n“12”", Answer("text", "Total: “12”")).value == 1
        assert 0 < scorers.score("cup", Answer("list", ("cup", "tree"))).value < 1
        assert scorers.score("", THREE).detail == "empty"
    finally:
        scorers.close()


def test_the_scoring_process_imports_no_torch() -> None:
    import subprocess

    code = "import sys, sightloom.training.scorer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

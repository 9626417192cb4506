from pathlib import Path

import pytest

from sightloom.demo.settings import pipeline_file, settings
from sightloom.demo.steps import Steps
from sightloom.errors import UserMistake


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"rows": 7}

    first = Steps.open(tmp_path / "out", {"seed": 1}).run("corpus", work)
    again = Steps.open(tmp_path / "out", {"seed": 1}).run("corpus", work)
    assert first == again and first["rows"] == 7 and "seconds" in first
    assert calls == [1]


def test_a_step_that_fails_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    steps = Steps.open(tmp_path, {"seed": 1})
    with pytest.raises(ZeroDivisionError):
        steps.run("curate", lambda: {"rows": 1 // 0})
    assert not (tmp_path / "steps" / "curate.json").exists()
    assert steps.run("curate", lambda: {"rows": 1})["rows"] == 1


def test_another_demos_folder_is_refused_with_its_settings(tmp_path: Path) -> None:
    Steps.open(tmp_path, {"seed": 1})
    with pytest.raises(UserMistake, match=r"other settings: \{'seed': 1\}"):
        Steps.open(tmp_path, {"seed": 2})


def test_an_unwritable_place_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserMistake, match="file"):
        Steps.open(tmp_path / "file" / "out", {"seed": 1})


def test_the_short_road_is_shorter_everywhere_and_seeds_are_checked() -> None:
    whole, short = settings(3, False), settings(3, True)
    for name in ("num_pairs", "num_pictures", "num_trusted", "filter_steps", "step_share", "eval_per_domain"):
        assert getattr(short, name) < getattr(whole, name)
    with pytest.raises(UserMistake, match="--seed"):
        settings(-1, False)


def test_the_files_of_the_road_are_found_and_a_missing_one_is_named() -> None:
    for name in ("recipes/demo.yaml", "curricula/nano.yaml", "gates/demo.yaml", "suites/heldout-thinking.yaml"):
        assert pipeline_file(name).is_file()
    with pytest.raises(UserMistake, match=r"recipes/none\.yaml"):
        pipeline_file("recipes/none.yaml")

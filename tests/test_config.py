from pathlib import Path

import pytest

from sightloom import config
from sightloom.errors import UserMistake


class Top(config.Frozen):
    by: str
    fraction: float = 0.3


class Select(config.Frozen):
    top: list[Top] = []
    rules: dict[str, str] = {}


class Recipe(config.Frozen):
    name: str
    seed: int = 0
    select: Select = Select()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nselect: {top: [{by: clip}]}\n")
    return path


def test_overrides_reach_into_lists_and_read_yaml_values(recipe: Path) -> None:
    loaded = config.load(Recipe, recipe, ["select.top.0.fraction=0.2", "seed=7", "select.rules.small=min(width) >= 8"])
    assert (loaded.select.top[0].fraction, loaded.seed) == (0.2, 7)
    assert loaded.select.rules == {"small": "min(width) >= 8"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.tpo=1", r"unknown key 'tpo' in select .*did you mean 'top'"),
        ("select.top.0.fractoin=1", r"unknown key 'fractoin' in select.top.0 .*did you mean 'fraction'"),
        ("sede=1", r"unknown key 'sede' .*did you mean 'seed'"),
        ("seed=many", r"seed: .*integer.*'many'"),
        ("seed", "not of the form key=value"),
        ("select.top.4.by=x", "not an index into a list of 1"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_known(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserMistake, match=message):
        config.load(Recipe, recipe, [override])


def test_a_misspelt_key_is_named_before_the_required_one_that_it_was_meant_to_be(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("nmae: a\n")
    with pytest.raises(UserMistake, match=r"unknown key 'nmae' .*did you mean 'name'.* \(and 1 more\)"):
        config.load(Recipe, tmp_path / "r.yaml")


def test_a_missing_file_and_broken_yaml_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no configuration file at"):
        config.load(Recipe, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(UserMistake, match="not valid YAML"):
        config.load(Recipe, tmp_path / "bad.yaml")


def test_the_digest_depends_on_content_not_on_order() -> None:
    assert config.digest({"b": 1, "a": [1, 2]}) == config.digest({"a": [1, 2], "b": 1})
    assert config.digest({"a": [2, 1]}) != config.digest({"a": [1, 2]})


def test_flat_parameters_have_dotted_keys(recipe: Path) -> None:
    assert config.flatten(config.load(Recipe, recipe)) == {
        "name": "a",
        "seed": "0",
        "select.top.0.by": "clip",
        "select.top.0.fraction": "0.3",
        "select.rules": "{}",
    }

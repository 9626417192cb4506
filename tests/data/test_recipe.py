from pathlib import Path

import pytest

from sightloom.config import load
from sightloom.data.recipe import Recipe
from sightloom.errors import UserMistake

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    assert load(Recipe, path).name == path.stem


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dedup.perceptuel={bits: 4}", "unknown key 'perceptuel' in dedup.*did you mean 'perceptual'"),
        ("source.0.urri=x", "did you mean 'uri'"),
        ("name=Bad Name", "name"),
        ("score.chunk_rows=5", "chunk_rows"),
        ("select.top=[{by: x}]", "either fraction or count"),
        ("select.top=[{by: x, fraction: 1.5}]", "0..1"),
        ("select.rules={Bad-Name: 'width > 1'}", "not a name"),
        ("score.clip=[{name: a, model: m}, {name: a, model: n}]", "same name"),
        ("source=[]", "source"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(override: str, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        load(Recipe, RECIPES / "photos.yaml", [override])

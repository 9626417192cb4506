import json
from collections import Counter
from pathlib import Path

import pytest

from sightloom.config import load
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.errors import UserMistake
from sightloom.evaluation.examples import suite_digest
from sightloom.evaluation.objects import Pictured, object_questions
from sightloom.evaluation.suites import Suite, read_suite

from .conftest import png

PICTURES = [
    Pictured("a", png("red"), ("dog", "ball", "tree")),
    Pictured("b", png("green"), ("dog", "ball")),
    Pictured("c", png("blue"), ("cat", "tree")),
    Pictured("d", png("white"), ("dog", "apple")),
]


def absent(negatives: str, per_picture: int = 1) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for example in object_questions(PICTURES, negatives, per_picture, 0, "s", "hallucination"):
        if example.answer.value == "no":
            found.setdefault(example.id.split("/")[0], []).append(example.id.split("/")[2])
    return found


def test_popular_negatives_are_the_commonest_objects_and_adversarial_ones_the_commonest_company() -> None:
    assert absent("popular") == {
        "a": [absent("popular")["a"][0]],
        "b": ["tree"],
        "c": ["dog"],
        "d": [absent("popular")["d"][0]],
    }
    assert absent("popular")["d"][0] in ("ball", "tree")  # both in two pictures
    assert absent("adversarial")["b"] == ["tree"]  # beside dog and beside ball in picture a
    assert absent("adversarial")["d"] == ["ball"]  # twice beside the dog, the tree once


@pytest.mark.parametrize("negatives", ["random", "popular", "adversarial"])
def test_questions_are_balanced_true_and_drawn_the_same_again(negatives: str) -> None:
    examples = object_questions(PICTURES, negatives, 3, 5, "s", "hallucination")
    there = {picture.id: set(picture.objects) for picture in PICTURES}
    for example in examples:
        picture, _, name = example.id.split("/")
        assert example.answer.value == ("yes" if name in there[picture] else "no")
        assert example.kind == "yes_no"
        assert example.question in (f"Is there a {name} in the image?", f"Is there an {name} in the image?")
    assert Counter(example.answer.value for example in examples)["yes"] * 2 == len(examples)
    again = object_questions(PICTURES, negatives, 3, 5, "s", "hallucination")
    assert suite_digest(again) == suite_digest(examples)


def test_pictures_that_hold_the_same_give_nothing_to_ask() -> None:
    with pytest.raises(UserMistake, match="nothing to ask"):
        object_questions(PICTURES[:1], "random", 1, 0, "s", "h")


def test_a_suite_reads_objects_and_draws_pictures(tmp_path: Path) -> None:
    for picture in PICTURES:
        (tmp_path / f"{picture.id}.png").write_bytes(picture.image)
    lines = [json.dumps({"image": f"{its.id}.png", "objects": list(its.objects)}) for its in PICTURES]
    (tmp_path / "objects.jsonl").write_text("\n".join(lines))
    suite = Suite.model_validate({
        "name": "s",
        "sources": [
            {"kind": "objects", "path": str(tmp_path / "objects.jsonl"), "negatives": "random", "per_picture": 1},
            {"kind": "procedural", "per_domain": 6, "seed": 3},
            {"kind": "procedural", "generator": "objects", "per_domain": 30, "seed": 3},
        ],
    })  # fmt: skip
    examples = read_suite(suite, None, GENERATORS)
    assert Counter(example.domain for example in examples) == {
        "hallucination": 38, "natural": 6, "document": 6, "science": 6, "ui": 6, "art": 6,
    }  # fmt: skip
    drawn = [example for example in examples if example.id.startswith("objects-")]
    assert Counter(example.answer.value for example in drawn) == {"yes": 15, "no": 15}
    assert set(Counter(example.task for example in drawn).values()) == {10}, "each kind of negatives"
    assert any(example.needs_steps for example in examples)
    assert all(example.conversation.messages[-1].role == "user" for example in examples)
    assert suite_digest(read_suite(suite, None, GENERATORS)) == suite_digest(examples)
    with pytest.raises(UserMistake, match="'five-domains' is not known"):
        read_suite(suite)
    (tmp_path / "objects.jsonl").write_text('{"image": "a.png"}')
    with pytest.raises(UserMistake, match="line 1: expected"):
        read_suite(suite, None, GENERATORS)


def test_the_suites_that_are_shipped_are_valid() -> None:
    for path in (Path(__file__).parents[2] / "pipelines" / "suites").glob("*.yaml"):
        assert load(Suite, path).sources

import hashlib
import json
from pathlib import Path

import pytest
from tests.training.conftest import write_shards

from sightloom.config import load, validate
from sightloom.data.shards.heldout import is_heldout
from sightloom.errors import UserMistake
from sightloom.evaluation.examples import suite_digest
from sightloom.evaluation.jsonl import from_jsonl
from sightloom.evaluation.suites import Suite, from_manifest, read_suite
from sightloom.records import CAPTION_PROMPT

from .conftest import png


def test_only_questions_on_heldout_pictures_are_asked_and_without_their_answer(shards: Path) -> None:
    examples = from_manifest(str(shards), heldout=0.5)
    assert {example.domain for example in examples} == {"art", "ui"}
    for example in examples:
        assert example.image is not None
        assert is_heldout(hashlib.sha256(example.image).hexdigest(), 0.5)
        assert [message.role for message in example.conversation.messages] == ["user"]
        assert example.conversation.messages[0].image
        assert example.group == example.image_sha256
    shared = [example.group for example in examples]
    assert len(set(shared)) * 2 == len(shared), "both questions on a picture are held out together"
    assert sum(example.needs_steps for example in examples) * 2 == len(examples)


def test_the_draw_is_bounded_per_domain_and_depends_on_the_seed_alone(shards: Path) -> None:
    first = from_manifest(str(shards), 1.0, per_domain=7, seed=1)
    assert [example.domain for example in first].count("art") == 7
    assert len(first) == 14
    again = from_manifest(str(shards), 1.0, per_domain=7, seed=1)
    other = from_manifest(str(shards), 1.0, per_domain=7, seed=2)
    assert suite_digest(first) == suite_digest(again) != suite_digest(other)


def test_an_expression_over_the_shard_table_chooses(shards: Path) -> None:
    examples = from_manifest(str(shards), 1.0, where="domain == 'art' and reasoning_chars > 0")
    assert {(example.domain, example.needs_steps) for example in examples} == {("art", True)}
    with pytest.raises(UserMistake, match="domian"):
        from_manifest(str(shards), 1.0, where="domian == 'art'")
    with pytest.raises(UserMistake, match="no held-out question"):
        from_manifest(str(shards), 1.0, where="width > 1000")


def test_heldout_pairs_are_pictures_to_describe_with_their_caption_as_the_reference(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path / "shards", 40, 3)
    examples = from_manifest(manifest, 0.5, per_domain=2, captions=True)
    assert 4 <= len(examples) < 40 and {example.kind for example in examples} == {"caption"}
    for example in examples:
        assert example.question == CAPTION_PROMPT and example.conversation.has_image and example.image is not None
        assert len(str(example.answer.value)) > 10 and not example.needs_steps
        assert is_heldout(example.image_sha256, 0.5)
    with pytest.raises(UserMistake, match="no held-out pair"):
        from_manifest(write_shards(tmp_path / "questions", 0, 3), 1.0, captions=True)


def write(folder: Path, *lines: object) -> str:
    (folder / "a.png").write_bytes(png("red"))
    path = folder / "q.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_a_jsonl_benchmark_of_anyone_is_read(tmp_path: Path) -> None:
    base = {"image": "a.png", "question": "?", "domain": "science"}
    path = write(
        tmp_path,
        {**base, "id": 1, "answer": "b", "options": ["a", "b"]},
        {**base, "id": 2, "answer": 3.5, "type": "number", "tolerance": 0.05},
        {**base, "id": 3, "answers": ["no", "No way"], "type": "text", "group": "g"},
        {**base, "id": 4, "answer": "Yes", "type": "yes_no"},
        {**base, "id": 5, "answer": [1, 2, 30, 40], "type": "point"},
        {"id": 6, "question": "without a picture?", "answer": "x", "domain": "science"},
    )
    examples = from_jsonl(path)
    assert [example.answer.kind for example in examples] == ["choice", "number", "text", "choice", "point", "text"]
    assert [answer.value for answer in examples[2].also] == ["No way"]
    assert examples[3].answer.value == "yes"
    assert examples[5].image is None
    assert not examples[5].conversation.has_image
    assert len(from_jsonl(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": "1", "question": "?", "answer": "x"}, "line 1: no domain"),
        ({"id": "1", "answer": "x", "domain": "art"}, "'question' is required"),
        ({"id": "1", "question": "?", "domain": "art"}, r"answer.value: is required"),
        ({"id": "1", "question": "?", "answer": "x", "type": "essay", "domain": "art"}, "expected one of"),
        ({"id": "1", "question": "?", "answer": "x", "domain": "art", "image": "gone.png"}, r"gone\.png"),
        ({"id": "1", "question": "?", "answer": "x", "domain": "art", "images": ["a"] * 9}, "at most 8 file names"),
        ({"id": "1", "question": "?", "answer": "x", "domain": "art", "images": ["a", 2]}, "at most 8 file names"),
        (
            {"id": "1", "question": "?", "answer": "x", "domain": "art", "images": ["a", "b"], "type": "caption"},
            "describes one picture",
        ),
        ([1], "expected an object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        from_jsonl(write(tmp_path, line))


def test_a_suite_without_its_manifest_and_one_with_equal_ids_are_refused(tmp_path: Path, shards: Path) -> None:
    suite = validate(Suite, {"name": "s", "sources": [{"kind": "manifest", "heldout": 1.0}]}, "test")
    assert read_suite(suite, str(shards))
    with pytest.raises(UserMistake, match=r"sources\[0\]\.manifest"):
        read_suite(suite)
    twice = validate(Suite, {"name": "s", "sources": [{"kind": "manifest", "heldout": 1.0}] * 2}, "test")
    with pytest.raises(UserMistake, match="examples with the id"):
        read_suite(twice, str(shards))
    with pytest.raises(UserMistake, match="did you mean 'heldout'"):
        validate(Suite, {"name": "s", "sources": [{"kind": "manifest", "heldou": 1.0}]}, "test")


def test_the_suites_that_are_shipped_are_valid() -> None:
    folder = Path(__file__).parents[2] / "pipelines" / "suites"
    names = {load(Suite, path).name for path in folder.glob("*.yaml")}
    assert names == {path.stem for path in folder.glob("*.yaml")}

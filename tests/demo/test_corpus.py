"""The procedural corpus: same key, same sample; captions state what questions ask; every answer can be checked."""

import numpy as np
import pytest

from sightloom.demo.corpus import Sample, sample
from sightloom.demo.corpus.arithmetic import WORDS
from sightloom.records import DOMAINS, Conversation

SAMPLES = [sample(7, index) for index in range(500)]


def in_words(text: str) -> str:
    """A number as captions and reasoning write it; other answers as they are."""
    return WORDS[int(text)] if text.isdigit() else text


def test_the_same_key_gives_the_same_sample() -> None:
    for index in (0, 1, 2, 3, 4, 123):
        one, again = sample(3, index), sample(3, index)
        assert (one.caption, one.questions) == (again.caption, again.questions)
        assert np.array_equal(np.asarray(one.image), np.asarray(again.image))


def test_seed_index_and_domain_each_change_the_sample() -> None:
    pictures = {sample(seed, index).image.tobytes() for seed in range(3) for index in range(40)}
    assert len(pictures) == 120
    assert sample(0, 0, "ui").domain == "ui"
    assert [sample(0, index).domain for index in range(5)] == list(DOMAINS)


def test_pictures_are_64_pixels_a_side_and_not_flat() -> None:
    for one in SAMPLES:
        assert one.image.size == (64, 64)
        assert one.image.mode == "RGB"
        assert np.asarray(one.image).std() > 10


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_answer_that_is_read_off_the_picture_stands_in_the_caption(domain: str) -> None:
    for one in SAMPLES:
        if one.domain != domain:
            continue
        words = one.caption.replace(",", "").split()
        for question in one.questions:
            if question.needs_steps or question.answer.kind == "point" or question.task == "extreme":
                continue
            assert all(word in words for word in in_words(question.text).split()), (one.caption, question)


def test_written_answers_are_right_answers() -> None:
    for one in SAMPLES:
        for question in one.questions:
            answer = question.answer
            if answer.kind == "point":
                x, y = (int(part) for part in question.text.strip("()").split(", "))
                x1, y1, x2, y2 = answer.value
                assert x1 < x < x2
                assert y1 < y < y2
            else:
                assert question.text == str(answer.value)
            if answer.kind == "choice":
                assert question.text in answer.options


def test_reasoning_ends_in_the_answer_of_its_question() -> None:
    seen = set()
    for one in SAMPLES:
        for question in one.questions:
            if question.reasoning is None:
                continue
            seen.add((one.domain, question.task))
            if question.answer.kind != "point":
                assert in_words(question.text) in question.reasoning.split(", ")[-1].split()
    assert {domain for domain, _ in seen} == {"natural", "document", "science", "ui"}
    assert len(seen) >= 12


def test_sums_of_the_reasoning_are_true() -> None:
    signs = {"plus": 1, "minus": -1}
    checked = 0
    for one in SAMPLES:
        for question in one.questions:
            for step in (question.reasoning or "").split(", "):
                words = step.split()
                if len(words) == 5 and words[1] in signs:
                    left, right, total = (WORDS.index(words[place]) for place in (0, 2, 4))
                    assert left + signs[words[1]] * right == total
                    checked += 1
    assert checked > 100


def test_texts_are_short_enough_for_the_smallest_model() -> None:
    for one in SAMPLES:
        assert len(one.caption.replace(",", " ,").split()) <= 32
        assert all(len((question.reasoning or "").replace(",", " ,").split()) <= 50 for question in one.questions)


def test_records_are_one_dialogue_and_a_checkable_record_for_each_question() -> None:
    for one in SAMPLES[:50]:
        dialogue, *singles = one.records("k")
        assert dialogue.answer is None
        assert len(dialogue.messages) == 2 * len(one.dialogue)
        assert len(singles) == len(one.questions)
        for record, question in zip(singles, one.questions, strict=True):
            assert record.answer == question.answer
            assert record.messages[-1].reasoning == question.reasoning
        for record in (dialogue, *singles):
            assert Conversation.from_json(record.to_json()) == record


def test_a_quarter_or_less_of_the_questions_needs_steps() -> None:
    def share(samples: list[Sample]) -> float:
        questions = [question for one in samples for question in one.questions]
        return sum(question.needs_steps for question in questions) / len(questions)

    assert 0.1 < share(SAMPLES) <= 0.25

import dataclasses
from collections.abc import Sequence

import pytest

from sightloom.evaluation.answerers import Prediction
from sightloom.evaluation.captions import cider_d, clip_scores
from sightloom.evaluation.judge import judge
from sightloom.evaluation.result import Decoding, Statistics
from sightloom.evaluation.runner import summarize
from sightloom.records import Answer

from .conftest import example, png

REFERENCES = [
    ["a brown dog runs on the green grass", "the dog is running outside"],
    ["two people sit at a small table", "people eat lunch at a table"],
    ["a red car parked near the house"],
]
CANDIDATES = ["a dog runs on grass", "two people at a table", "a red car parked near the house"]


def test_cider_d_is_the_published_scripts() -> None:
    # pycocoevalcap 1.2, Cider() on the same words; 1e-12 is float64's rounding of another order of sums
    golden = [1.8749017027750412, 3.182331945898773, 10.0]
    assert cider_d(CANDIDATES, REFERENCES) == pytest.approx(golden, rel=1e-12)
    assert cider_d([texts[0] for texts in REFERENCES[2:] * 3], REFERENCES[2:] * 3) == [0.0] * 3  # in every picture
    with pytest.raises(ValueError, match="references"):
        cider_d(["a"], [[]])


def test_a_clip_score_is_hessels() -> None:
    assert clip_scores([0.3, -0.2, 1.0]) == pytest.approx([0.75, 0.0, 2.5])


def test_captions_are_scored_together_and_count_in_no_accuracy() -> None:
    examples = [
        dataclasses.replace(
            example(f"c{i}", task="caption", image=png(colour)),
            answer=Answer("text", texts[0]),
            also=tuple(Answer("text", text) for text in texts[1:]),
            caption=True,
        )
        for i, (colour, texts) in enumerate(zip(("red", "green", "blue"), REFERENCES, strict=True))
    ]
    said = [Prediction(e.id, words, None, "off", "stop", 5, 1.0) for e, words in zip(examples, CANDIDATES, strict=True)]
    asked: list[tuple[int, list[str]]] = []

    def cosines(images: Sequence[bytes], captions: Sequence[str]) -> list[float]:
        asked.append((len(images), list(captions)))
        return [0.2, 0.3, 0.4]

    rows = judge(examples, said, cosines)
    assert asked == [(3, CANDIDATES)]
    assert [row.scores["clip_score"] for row in rows] == pytest.approx([0.5, 0.75, 1.0])
    assert [row.scores["cider"] for row in rows] == pytest.approx([1.8749017027750412, 3.182331945898773, 10.0])
    result = summarize(rows, examples, Decoding(), Statistics(resamples=200), 1.0)
    assert result.overall.metric == "cider"
    assert result.domains["art"].chance_constant == 0.0
    assert set(result.domains["art"].metrics) == {"cider", "clip_score"}

import numpy as np
import pyarrow as pa

from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.dedup.overlap import matches, plain
from sightloom.data.sources.records import RawRecord

from .test_dedup import jpeg, smooth, table_of


def asked(number: int, question: str, picture: bytes) -> RawRecord:
    return RawRecord(number, str(number), kind="conversation", image=picture, text=question, meta={"id": str(number)})


def test_pictures_and_questions_of_an_evaluation_set_go_and_others_stay() -> None:
    reference = table_of([RawRecord(0, "e", image=smooth(1), text="held out"), asked(1, "How many cats?", smooth(2))])
    corpus = table_of(
        [
            RawRecord(0, "same bytes", image=smooth(1), text="other words"),
            RawRecord(1, "a copy", image=jpeg(smooth(1), 0.75, 60), text="other words"),
            RawRecord(2, "another picture", image=smooth(3), text="held out"),
            asked(3, "how many -- CATS", smooth(4)),
            asked(4, "How many dogs?", smooth(5)),
            RawRecord(5, "a caption like a question", image=smooth(6), text="How many cats?"),
        ]
    )
    ok = np.ones(6, np.bool_)
    assert matches(corpus, reference, ok).tolist() == [True, True, False, True, False, False]
    ok[0] = False
    assert matches(corpus, reference, ok).tolist() == [False, True, False, True, False, False]


def test_questions_are_compared_without_case_and_punctuation() -> None:
    texts = pa.chunked_array([["  What's THIS?! ", "Ça va…", "?!", None]])
    assert plain(texts).to_pylist() == ["what s this", "ça va", "", None]


def test_the_winner_of_an_overlap_is_no_row_of_the_corpus() -> None:
    found = Duplicates(np.array([2]), ("dup_image",), np.array([0]))
    found = found.joined(np.array([1]), ("eval_overlap_pope",), np.array([-1]))
    uids = pa.array([bytes([n]) * 16 for n in range(3)], pa.binary(16))
    assert found.table(uids).to_pylist() == [
        {"row": 1, "method": "overlap", "reason": "eval_overlap_pope", "of": None},
        {"row": 2, "method": "exact", "reason": "dup_image", "of": bytes(16)},
    ]


def test_two_evaluation_sets_of_one_name_are_refused() -> None:
    one = {"name": "pope", "scores": "x"}
    try:
        DedupConfig.model_validate({"decontaminate": [one, one]})
    except ValueError as error:
        assert "same name" in str(error)
    else:
        raise AssertionError("not refused")

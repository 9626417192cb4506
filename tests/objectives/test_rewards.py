import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightloom.model.thinking import parse_response
from sightloom.objectives.rewards import MAX_CHARS, format_reward, length_reward, score
from sightloom.objectives.rewards.text import levenshtein
from sightloom.records import Answer

COLOURS = Answer("choice", "red", ("red", "dark red", "blue"))
FREE = Answer("choice", "left")
THREE = Answer("number", 3)
PRICE = Answer("number", 12.5, tolerance=0.05)
WORDS = Answer("text", "Total: 12")
ORDER = Answer("list", ("cup", "tree", "3"))
BOX = Answer("box", (100, 100, 300, 300))
POINT = Answer("point", (500, 500))
BUTTON = Answer("point", (100, 100, 300, 200))
HALF = Answer("math", r"$\frac{1}{2}$")
ROOT = Answer("math", r"2\sqrt{3}")
SQUARE = Answer("math", "x^2 - 1")
PLACE = Answer("math", r"\left(1, \frac{3}{2}\right)")
BOTH = Answer("math", r"\{1, 2\}")
ANGLE = Answer("math", r"90^\circ")
SPOKEN = Answer("words", "the cat sat on the mat")

RIGHT = [
    (COLOURS, ["red", "Red.", "the red", "It is red.", "A", "(a)", "Answer: A", "option a", "**red**"]),
    (FREE, ["left", "on the left", " LEFT\n"]),
    (
        THREE,
        ["3", "3.0", "three", "Three.", "3 circles", "there are 3.", "1 + 2 = 3", "answer: 3", r"2 + 1 is \boxed{3}"],
    ),
    (PRICE, ["12.5", "$12.50", "12.4 EUR", "13 €", "12.5%"]),
    (Answer("number", 1234567), ["1,234,567", "1234567", "1.234567e6"]),
    (Answer("number", -4), ["-4", "−4", "it is -4 °C"]),
    (Answer("number", 0), ["0", "zero"]),
    (WORDS, ["Total: 12", "total:  12", '"Total: 12"']),
    (ORDER, ["cup, tree, 3", "Cup; tree; 3", "[cup, the tree, 3]", "cup, tree, and 3", "cup → tree → 3"]),
    (BOX, ["[100, 100, 300, 300]", "100,100,300,300", "(100,100),(300,300)"]),
    (POINT, ["[500, 500]", "(500,500)", "500 500"]),
    (BUTTON, ["[100, 100]", "(250, 150)"]),
    (HALF, ["1/2", "0.5", r"\dfrac12", r"so it is \boxed{\frac{2}{4}}", "50%", "2^{-1}", "answer: .5", "x = 0.5"]),
    (ROOT, ["√12", r"\sqrt{12}", "2 sqrt(3)", "12^0.5", "3.4641016"]),
    (SQUARE, ["(x-1)(x+1)", "x*x - 1", "-(1 - x^{2})"]),
    (PLACE, ["(1, 1.5)", "(1,3/2)"]),
    (BOTH, [r"\{2, 1\}", "{1,2}"]),
    (ANGLE, ["90", "90°", r"90^{\circ}"]),
    (Answer("math", r"\log_2 8"), ["3", "log_2(8)"]),
    (Answer("math", "12345"), ["12,345", "12345.0"]),
    (SPOKEN, ["the cat sat on the mat", "The  cat sat\non the MAT"]),
]
WRONG = [
    (COLOURS, ["blue", "red or blue", "red, dark red, blue", "not red", "dark red", "B", "green", "it isn't red", "Z"]),
    (FREE, ["right", "left or not", "leftover"]),
    (THREE, ["4", "3 or 4", "1 2 3 4 5", "30", "0.3", "3,4", "1-10", "many", "9" * 1000, "3" * 1000, "13 three"]),
    (PRICE, ["11", "14", "-12.5"]),
    (WORDS, ["", "Tot", "x" * 3000, "completely different"]),
    (ORDER, ["", ", ".join(["cup", "tree", "3"] * 50)]),
    (BOX, ["[300, 300, 100, 100]", "[0, 0, 2000, 2000]", "100 100 300", "[1,2,3,4,5,6,7,8]", "nowhere"]),
    (POINT, ["500", "[500, 500, 500]", "[500, 2000]"]),
    (BUTTON, ["[50, 150]", "[100, 100, 300, 200]"]),
    (
        HALF,
        ["1/3", "1/2 or 1/3", "1/2, 1/2", r"\boxed{1/2} or \boxed{1/3}", "1/4 + 1/4", "0.25 * 2", "half of it", "y/2"],
    ),
    (
        HALF,
        ["(" * 200 + "1/2" + ")" * 200, "9**9**9**9", "1/0", "0/0", r"\frac{", r"\frac{1}", "0." + "5" * 1000, "^2"],
    ),
    (ROOT, ["2*3", "-√12", "12", "sqrt(-12)"]),
    (SQUARE, ["x^2 + 1", "(x+1)(1-x)", "x^2", "y^2 - 1", "0"]),
    (PLACE, ["1, 1.5", "(1.5, 1)", "[1, 1.5]", "(1, 1.5, 2)"]),
    (BOTH, ["{1, 1}", "{1, 2, 3}", "1", "(1, 2)"]),
    (SPOKEN, ["", "a b c d e f", "the cat sat on the mat " * 2, "a dog stood by a door"]),
]


@pytest.mark.parametrize(("answer", "content"), [(answer, content) for answer, said in RIGHT for content in said])
def test_right_answers_earn_everything(answer: Answer, content: str) -> None:
    assert score(content, answer).value == pytest.approx(1)


@pytest.mark.parametrize(("answer", "content"), [(answer, content) for answer, said in WRONG for content in said])
def test_wrong_and_ambiguous_answers_earn_nothing(answer: Answer, content: str) -> None:
    reward = score(content, answer)
    assert reward.value == 0 and reward.detail


def test_nearly_right_answers_earn_a_part() -> None:
    assert score("Total: 13", WORDS).value == pytest.approx(8 / 9)
    assert score("cup, 3, tree", ORDER).value == pytest.approx(2 / 3)
    assert score("cup, tree", ORDER).value == pytest.approx(2 / 3)
    assert score("[100, 100, 300, 200]", BOX).value == pytest.approx(0.5)
    assert score("[550, 500]", POINT).value == pytest.approx(math.exp(-0.5))
    assert score("[950, 100]", POINT).value < 1e-9
    assert score("the cat sat on a mat", SPOKEN).value == pytest.approx(5 / 6)
    assert score("the cat sat on the", SPOKEN).value == pytest.approx(5 / 6)


@pytest.mark.parametrize("answer", [answer for answer, _ in RIGHT], ids=lambda answer: f"{answer.kind}-{answer.value}")
def test_echoing_the_prompt_and_endless_answers_earn_nothing(answer: Answer) -> None:
    prompt = (
        "How many of the 7 shapes are red, dark red or blue, left or right? Answer 1, 2 or 3 at (10, 20) or (30, 40)."
    )
    assert score(prompt, answer).value < 0.2
    assert score("red 3 " * MAX_CHARS, answer).value == 0


@given(content=st.text(max_size=300), answer=st.sampled_from([answer for answer, _ in RIGHT]))
def test_no_text_raises_and_every_score_is_between_zero_and_one(content: str, answer: Answer) -> None:
    assert 0 <= score(content, answer).value <= 1


@given(content=st.text("0123456789.,-+$% e()[]", max_size=60), answer=st.sampled_from([answer for answer, _ in RIGHT]))
def test_nor_does_any_heap_of_digits(content: str, answer: Answer) -> None:
    assert 0 <= score(content, answer).value <= 1


@given(left=st.text("ab ", max_size=6), right=st.text("ab ", max_size=6))
def test_edit_distance_is_a_metric_bounded_by_the_longer(left: str, right: str) -> None:
    distance = levenshtein(left, right)
    assert distance == levenshtein(right, left) <= max(len(left), len(right))
    assert (distance == 0) == (left == right)
    assert levenshtein("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("text", "opened", "value"),
    [
        ("count\n</think>\n\n3", True, 1),
        ("<think>count</think>3", False, 1),
        ("3", False, 0),
        ("</think>3", True, 0),
        ("count</think>", True, 0),
        ("count 3", True, 0),
        ("<think>count</think>3", True, 0),
        ("a</think>3</think>3", True, 0),
    ],
)
def test_only_one_closed_filled_block_before_an_answer_is_well_formed(text: str, opened: bool, value: float) -> None:
    assert format_reward(parse_response(text, opened)).value == value


def test_length_rises_holds_and_falls() -> None:
    bounds = (0, 8, 64, 96)
    values = [length_reward(tokens, bounds).value for tokens in (0, 4, 8, 64, 80, 96, 97)]
    assert values == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert length_reward(5, (5, 5, 5, 5)).value == 1
    with pytest.raises(ValueError, match="must not fall"):
        length_reward(5, (9, 8, 64, 96))

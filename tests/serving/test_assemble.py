"""Stop strings, borders and the split of tokens into thinking and answer."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sightloom.model.thinking import THINK_CLOSE, THINK_OPEN, parse_response
from sightloom.serving.assemble import Border
from sightloom.serving.engines.base import Thinking
from sightloom.serving.engines.split import Splitter, ThinkTokens

LETTERS = st.text(alphabet="ab \n", max_size=24)


def through(pieces: Sequence[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    border = Border(stops)
    return "".join(border.push(piece) for piece in pieces) + border.end(), border.stopped


@given(st.lists(LETTERS, max_size=8), st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    cuts = [text.find(stop) for stop in stops if stop in text]
    expected = (text[: min(cuts)] if cuts else text).strip()
    assert through(pieces, tuple(stops)) == (expected, bool(cuts))


def test_nothing_of_a_stop_string_is_shown_before_it_is_whole() -> None:
    border = Border(("END",))
    assert border.push("one EN") == "one"
    assert border.push("TRY") == " ENTRY"
    assert border.push(" E") == ""
    assert border.push("ND two") == ""
    assert border.stopped


@pytest.fixture(scope="module")
def tokenizer(nano_folder: object) -> object:
    return AutoTokenizer.from_pretrained(nano_folder)


def check_split(tokenizer: Any, text: str, opened: bool) -> None:
    """Token by token, the splitter gives what the parser says of the whole text."""
    vocabulary = tokenizer.get_vocab()
    marks = ThinkTokens(vocabulary[THINK_OPEN], vocabulary[THINK_CLOSE])
    splitter = Splitter(tokenizer.backend_tokenizer.decode, marks, opened, 1000, frozenset())
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces = []
    for token in tokens:
        splitter.push(token)
        pieces.append(splitter.take())
    outcome = splitter.end()
    pieces.append(splitter.take())
    parsed = parse_response(text, opened)
    assert "".join(piece.reasoning for piece in pieces).strip() == (parsed.thinking or "")
    assert "".join(piece.answer for piece in pieces).strip() == parsed.content
    assert sum(piece.num_reasoning + piece.num_answer for piece in pieces) == len(tokens)
    if parsed.content:  # how the thinking went says nothing of a missing answer
        assert outcome == ("malformed" if not parsed.well_formed else "off" if parsed.thinking is None else "complete")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("I count 3.\n</think>\n\nThree.", True),
        ("<think>\nI count 3.\n</think>\n\nThree. ünïcode 猫 🎨", False),
        ("Three.", False),
        ("I never close", True),
        ("</think>\n\nThree.", True),
    ],
)
def test_the_split_of_tokens_equals_the_parser_of_whole_texts(tokenizer: Any, text: str, opened: bool) -> None:
    check_split(tokenizer, text, opened)


@given(
    st.lists(st.sampled_from([THINK_OPEN, THINK_CLOSE, "three", " ", "\n\n", "猫"]), max_size=8).map("".join),
    st.booleans(),
)
def test_marks_in_any_number_and_order_are_split_as_the_parser_does(tokenizer: Any, text: str, opened: bool) -> None:
    check_split(tokenizer, text, opened)


def test_a_budget_leaves_room_for_the_answer() -> None:
    assert Thinking(True, 256, 32).effective_budget(1024) == 256
    assert Thinking(True, 256, 32).effective_budget(200) == 168
    assert Thinking(True, None, 32).effective_budget(200) == 168
    assert Thinking(True, None, 32).effective_budget(20) == 10
    assert Thinking(True, None, 32).effective_budget(1) == 1

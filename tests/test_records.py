from typing import Any

import pytest

from sightloom.records import Answer, Conversation, InvalidRecord, Message, Pair


def record(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": "r1",
        "kind": "conversation",
        "task": "count",
        "domain": "natural",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
            {"role": "assistant", "content": "2", "reasoning": "one, two."},
        ],
        "answer": {"kind": "number", "value": 2},
    }
    return base | changes


def test_a_record_survives_the_round_trip() -> None:
    conversation = Conversation.from_json(record())
    assert conversation.answer == Answer("number", 2)
    assert (conversation.turns, conversation.reasoning_chars, conversation.has_image) == (1, 9, True)
    assert Conversation.from_json(conversation.to_json()) == conversation


def test_plain_text_gets_the_picture_in_front() -> None:
    plain = record(messages=[{"role": "user", "content": "How many?"}])
    conversation = Conversation.from_json(plain)
    assert not conversation.has_image
    assert conversation.with_image().messages == (Message("user", "How many?", image=True),)


def test_a_pair_reads_as_a_caption_dialogue() -> None:
    conversation = Pair("a red circle", "natural").as_conversation("u")
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[-1].text == "a red circle"


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"id": ""}, "id"),
        ({"kind": "pair"}, "kind"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, USER]}, "messages.1.role"),
        ({"messages": [USER], "answer": None}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "<think>"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, "messages.0.reasoning"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"answer": {"kind": "guess", "value": 1}}, "answer.kind"),
        ({"answer": {"kind": "number", "value": "2"}}, "answer.value"),
        ({"answer": {"kind": "box", "value": [0, 0, 10]}}, "answer.value"),
        ({"answer": {"kind": "point", "value": [0, 2000]}}, "answer.value"),
        ({"answer": {"kind": "text", "value": "a", "extra": 1}}, "answer.extra"),
        ({"kind": "preference", "messages": [USER]}, "chosen"),
    ],
)
def test_a_broken_record_names_the_place(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        Conversation.from_json(record(**changes))
    assert caught.value.pointer == pointer

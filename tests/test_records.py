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
REPLY = {"role": "assistant", "content": "y"}
PICTURE = {"type": "image"}
PREFERENCE = {"kind": "preference", "messages": [USER], "chosen": REPLY, "rejected": {**REPLY, "content": "z"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": ""}, "id: expected a non-empty string"),
        ({"task": "a\ud800"}, "task: holds a NUL or half a surrogate pair"),
        ({"kind": "pair"}, "kind: expected conversation or preference, got 'pair'"),
        ({"messages": []}, "messages: expected a non-empty list"),
        ({"messages": ["hello"]}, "messages.0: expected an object, got str"),
        ({"messages": [REPLY]}, "messages.0.role: expected user, got assistant"),
        ({"messages": [USER, USER]}, "messages.1.role: expected assistant, got user"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages.1.role: expected assistant, got system"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: no turn"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: expected one of system, user, assistant"),
        ({"messages": [USER], "answer": None}, "messages: must end with the assistant's turn, or an answer"),
        ({"messages": [{**USER, "name": "Ann"}]}, "messages.0.name: unknown field"),
        ({"messages": [{**USER, "content": " "}]}, "messages.0.content: is empty"),
        ({"messages": [{**USER, "content": 7}]}, "messages.0.content: expected a string or a list of parts"),
        (
            {"messages": [{**USER, "content": [PICTURE, PICTURE]}]},
            "messages.0.content: expected at most one image",
        ),
        ({"messages": [{**USER, "content": [{"type": "audio"}]}]}, "messages.0.content.0: expected a part of type"),
        ({"messages": [USER, {**REPLY, "content": [PICTURE]}]}, "messages.1.content: an image stands only in a user's"),
        (
            {"messages": [USER, REPLY, {**USER, "content": [PICTURE]}]},
            "messages.2.content: the image stands in",
        ),
        ({"messages": [{**USER, "content": "<think>"}]}, "messages.0.content: no think marks"),
        ({"messages": [USER, {**REPLY, "reasoning": "</think>"}]}, "messages.1.reasoning: no think marks"),
        ({"messages": [{**USER, "content": "a\0b"}]}, "messages.0.content: holds a NUL"),
        ({"messages": [{**USER, "reasoning": "y"}]}, "messages.0.reasoning: only a string on an assistant's turn"),
        ({"reasoning": ["one"]}, "reasoning: expected a string, got list"),
        ({"reasoning": "<think>"}, "reasoning: no think marks"),
        ({"answer": "2"}, "answer: expected an object, got str"),
        ({"answer": {"kind": "guess", "value": 1}}, "answer.kind: expected one of choice, number, text"),
        ({"answer": {"kind": "text"}}, "answer.value: is required"),
        ({"answer": {"kind": "number", "value": "2"}}, "answer.value: expected a number, got '2'"),
        ({"answer": {"kind": "number", "value": float("nan")}}, "answer.value: expected a number, got nan"),
        (
            {"answer": {"kind": "number", "value": 2, "tolerance": -1}},
            "answer.tolerance: expected a number that",
        ),
        ({"answer": {"kind": "list", "value": "a"}}, "answer.value: expected a list, got 'a'"),
        ({"answer": {"kind": "choice", "value": "a", "options": "ab"}}, "answer.options: expected a list of strings"),
        ({"answer": {"kind": "box", "value": [0, 0, 10]}}, "answer.value: expected 4 numbers in 0–1000"),
        ({"answer": {"kind": "point", "value": [0, 2000]}}, "answer.value: expected 2 or 4 numbers in 0–1000"),
        ({"answer": {"kind": "text", "value": "a", "extra": 1}}, "answer.extra: unknown field"),
        ({"chosen": REPLY}, "chosen: stands only in a record of kind preference"),
        ({**PREFERENCE, "chosen": None}, "chosen: expected an object, got NoneType"),
        ({**PREFERENCE, "rejected": USER}, "rejected.role: expected assistant, got user"),
        ({**PREFERENCE, "messages": [USER, REPLY]}, "messages: must end with a user's turn"),
    ],
)
def test_a_broken_record_names_the_place_and_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        Conversation.from_json(record(**changes))
    assert str(caught.value).startswith(words) and caught.value.pointer == words.partition(":")[0]

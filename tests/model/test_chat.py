import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.model.chat import Encoder
from sightloom.model.load import VLM
from sightloom.model.thinking import Parsed, parse_response
from sightloom.records import Conversation, Message

from .conftest import SIZES, conversation, picture

MODES = (None, True, False)


def template_inputs(nano: VLM, messages: tuple[Message, ...], image, mode: bool | None, prompt: bool):
    turns = [
        {
            "role": message.role,
            "content": [
                *([{"type": "image", "image": image}] if message.image else []),
                {"type": "text", "text": message.text},
            ],
            **({"reasoning": message.reasoning} if message.reasoning else {}),
        }
        for message in messages
    ]
    return nano.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=prompt,
        return_assistant_tokens_mask=True, **({} if mode is None else {"enable_thinking": mode}),
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_documents_and_prompts_equal_the_chat_template(nano: VLM, encoder: Encoder, mode: bool | None, size) -> None:
    dialogue, image = conversation(random.Random(str(size))), picture(1, size)
    document = encoder.encode(dialogue, image, thinking=mode)
    wanted = template_inputs(nano, dialogue.messages, image, mode, prompt=False)
    assert torch.equal(document.input_ids, wanted["input_ids"][0])
    assert torch.equal(document.loss_mask, torch.as_tensor(wanted["assistant_masks"][0]).bool())
    assert torch.equal(document.pixel_values, wanted["pixel_values"])
    assert torch.equal(document.image_grid_thw, wanted["image_grid_thw"])
    prompt = encoder.prompt(dialogue, image, mode)
    wanted = template_inputs(nano, dialogue.messages[:-1], image, mode, prompt=True)
    assert torch.equal(prompt.input_ids, wanted["input_ids"][0])


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=30), reasoning=st.text(min_size=1, max_size=30), mode=st.sampled_from(MODES))
def test_the_prompt_is_an_exact_prefix_and_the_mask_marks_exactly_the_rest(encoder, text, reasoning, mode) -> None:
    messages = (Message("user", "what?"), Message("assistant", text, reasoning=reasoning))
    dialogue = Conversation("c", "conversation", "t", "ui", messages)
    document, prompt = encoder.encode(dialogue, None, thinking=mode), encoder.prompt(dialogue, None, mode)
    assert document.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()
    assert not document.loss_mask[: len(prompt)].any()
    assert document.loss_mask[len(prompt) : -1].all() and not document.loss_mask[-1]


def test_a_model_with_nothing_to_think_about_learns_to_close_the_opened_block(encoder: Encoder) -> None:
    dialogue = Conversation("c", "conversation", "t", "ui", (Message("user", "what?"), Message("assistant", "red")))
    document, prompt = encoder.encode(dialogue, None, thinking=True), encoder.prompt(dialogue, None, True)
    written = encoder._tokenizer.decode(document.input_ids[document.loss_mask].tolist(), skip_special_tokens=False)
    assert document.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()
    assert written == "</think>\n\nred<|im_end|>"
    parsed = parse_response("</think>\n\nred", thinking_opened=True)
    assert (parsed.thinking, parsed.content, parsed.well_formed) == ("", "red", True)


def test_supervised_tokens_decode_to_exactly_the_models_part(nano: VLM, encoder: Encoder) -> None:
    dialogue, image = conversation(random.Random(5)), picture(5)
    first, last = dialogue.messages[1], dialogue.messages[3]
    part = {
        "first": f"<think>\n{first.reasoning}\n</think>\n\n{first.text}<|im_end|>",
        None: f"<think>\n{last.reasoning.strip()}\n</think>\n\n{last.text}<|im_end|>",
        True: f"{last.reasoning.strip()}\n</think>\n\n{last.text}<|im_end|>",
        False: f"{last.text}<|im_end|>",
    }
    for mode in MODES:
        both = encoder.encode(dialogue, image, "all", mode)
        only = encoder.encode(dialogue, image, "last", mode)
        assert nano.tokenizer.decode(both.input_ids[both.loss_mask]) == part["first"] + part[mode]
        assert nano.tokenizer.decode(only.input_ids[only.loss_mask]) == part[mode]


def test_a_conversation_without_an_answer_or_without_its_picture_is_refused(encoder: Encoder) -> None:
    lonely = Conversation("c1", "conversation", "t", "ui", (Message("user", "hm"),))
    with pytest.raises(ValueError, match="c1: no assistant turn"):
        encoder.encode(lonely, None)
    with pytest.raises(ValueError, match="no picture"):
        encoder.encode(conversation(random.Random(0)), None)


def test_image_tokens_are_counted_without_pixels(encoder: Encoder) -> None:
    for width in range(16, 300, 37):
        for height in range(16, 300, 41):
            patches, grid = encoder.pixels(picture(0, (width, height)))
            assert encoder.num_patches(width, height) == len(patches) == int(grid.prod())
            assert encoder.num_image_tokens(width, height) == len(patches) // 4
            assert len(patches) <= 64


def test_a_caption_ends_where_its_feature_is_read(nano: VLM, encoder: Encoder) -> None:
    document = encoder.caption(" a red circle ")
    assert nano.tokenizer.decode(document.input_ids) == "a red circle<|im_end|>"
    assert document.pool and not document.loss_mask.any()


@pytest.mark.parametrize(
    ("text", "opened", "parsed"),
    [
        ("blue", False, Parsed(None, "blue", True)),
        ("", False, Parsed(None, "", False)),
        ("a\n</think>\n\nblue", True, Parsed("a", "blue", True)),
        ("<think>\na\n</think>\n\nblue", False, Parsed("a", "blue", True)),
        ("a, never closed", True, Parsed("a, never closed", "", False)),
        ("<think>never closed", False, Parsed("never closed", "", False)),
        ("a</think>", True, Parsed("a", "", False)),
        ("<think>a</think>b", True, Parsed("a", "b", False)),
        ("a</think>b</think>c", True, Parsed("a", "bc", False)),
        ("a</think>b<think>c</think>d", True, Parsed("a", "bcd", False)),
        ("hm <think>a</think>b", False, Parsed("a", "hm b", False)),
        ("a</think>b", False, Parsed(None, "ab", False)),
    ],
)
def test_responses_are_taken_apart(text: str, opened: bool, parsed: Parsed) -> None:
    assert parse_response(text, opened) == parsed


def test_well_formed_responses_parse_as_the_saved_response_template_does(nano: VLM, encoder: Encoder) -> None:
    dialogue = conversation(random.Random(9), image=False)
    for mode in MODES:
        prompt = encoder.prompt(dialogue, None, mode)
        document = encoder.encode(dialogue, None, thinking=mode)
        written = nano.tokenizer.decode(document.input_ids[len(prompt) : -1])
        theirs = nano.tokenizer.parse_response(written, prefix=nano.tokenizer.decode(prompt.input_ids))
        ours = parse_response(written.removesuffix("<|im_end|>"), mode is True)
        assert ours.well_formed
        assert (ours.thinking or "", ours.content) == (theirs.get("thinking", "").strip(), theirs["content"].strip())

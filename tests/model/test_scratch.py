import hashlib
import random
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightloom.errors import UserMistake
from sightloom.model.load import VLM, load
from sightloom.model.presets import PRESETS, TokenIds
from sightloom.model.scratch import build_folder, random_model, train_tokenizer


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_preset_texts_and_seed_give_the_same_bytes_and_leave_the_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    texts = ["a red circle", "two blue squares"] * 5
    first = digests(build_folder("nano", texts, tmp_path / "a", seed=1))
    second = digests(build_folder("nano", texts, tmp_path / "b", seed=1))
    other = digests(build_folder("nano", texts, tmp_path / "c", seed=2))
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert torch.equal(state, torch.get_rng_state())


def test_nano_has_its_size_and_its_untrained_fusion_adds_nothing(nano_folder: Path) -> None:
    model = random_model(PRESETS["nano"], TokenIds(2048, 0, 0, 2, 3, 4, 5, 6), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(2.26e6, rel=0.01)
    fresh = load(str(nano_folder)).model
    pixels, grid = torch.randn(64, 384), torch.tensor([[1, 8, 8]])
    features = fresh.model.get_image_features(pixels, grid, return_dict=True).deepstack_features
    assert all(float(tokens.abs().max()) == 0 for layer in features for tokens in layer)


def test_the_folder_survives_the_round_trip_through_the_auto_classes(nano: VLM, tmp_path: Path) -> None:
    nano.model.save_pretrained(tmp_path)
    nano.processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    text = "<|im_start|>user\nhow  many\n\n37 circles? €<|im_end|>\n<think>\nß</think>"
    ids = nano.tokenizer(text).input_ids
    assert processor.tokenizer(text).input_ids == ids
    assert processor.tokenizer.chat_template == nano.tokenizer.chat_template
    assert processor.tokenizer.response_template == nano.tokenizer.response_template
    assert (
        processor.tokenizer.decode(ids, skip_special_tokens=True)
        == "user\nhow  many\n\n37 circles? €\n<think>\nß</think>"
    )
    assert model.config.tie_word_embeddings and model.generation_config.eos_token_id == [2, 0]
    for name, tensor in nano.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_special_tokens_come_first_and_numbers_are_single_digits(nano: VLM) -> None:
    tokens = nano.tokenizer.convert_ids_to_tokens(list(range(9)))
    assert tokens[0] == "<|endoftext|>" and tokens[2] == "<|im_end|>" and tokens[7:] == ["<think>", "</think>"]
    assert len(nano.tokenizer("2026").input_ids) == 4
    assert nano.model.config.text_config.vocab_size % 64 == 0


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer(["plain words only"], 512, 128)
    for text in ("数学 ∑ 🎨\t\x00end", " leading", "a\r\n\r\nb"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_tokenizer_for_fifty_thousand_texts_takes_seconds() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=20)) for _ in range(50_000)]
    start = time.process_time()
    assert len(train_tokenizer(texts, 2048, 2048)) == 2048
    assert time.process_time() - start < 15  # CPU seconds of all threads; measured 3


def test_no_text_is_a_user_mistake() -> None:
    with pytest.raises(UserMistake, match="no text"):
        train_tokenizer([], 512, 128)

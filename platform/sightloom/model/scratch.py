"""A model from nothing: a tokenizer trained on the corpus, a processor, random weights, one Hugging Face folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from sightloom.errors import UserMistake
from sightloom.model.chat import CHAT_TEMPLATE, RESPONSE_TEMPLATE
from sightloom.model.presets import MERGE_SIZE, TEMPORAL_PATCH_SIZE, Preset, TokenIds, build_config, get_preset

# First in the vocabulary, in this order. The think marks are no control tokens: a decoded text keeps them.
CONTROL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
THINK_TOKENS: Final = ("<think>", "</think>")
VOCAB_MULTIPLE: Final = 64


def build_folder(preset: str, texts: Iterable[str], out: Path, seed: int) -> Path:
    """Make an untrained model folder that AutoProcessor, AutoModelForImageTextToText and vLLM load.

    Same preset, texts and seed give the same bytes. The mergers of DeepStack start at zero, so that the first step
    equals a model without fusion.

    Raises:
        UserMistake: an unknown preset, or no text to train the tokenizer on.
    """
    size = get_preset(preset)
    tokenizer = train_tokenizer(texts, size.vocab, size.context)
    ids = token_ids(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    build_processor(size, tokenizer).save_pretrained(out)
    random_model(size, ids, seed).save_pretrained(out)
    return out


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's pre-tokenization (each digit alone), at most `vocab_size` tokens.

    Raises:
        UserMistake: no text.
    """
    added = (*CONTROL_TOKENS, *THINK_TOKENS)
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    num_texts = 0

    def counted() -> Iterable[str]:
        nonlocal num_texts
        for text in texts:
            num_texts += 1
            yield text

    learner.train_from_iterator(
        counted(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(added),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if num_texts == 0:
        raise UserMistake("no text to train a tokenizer on", hint="a from-scratch preset needs a corpus with texts")
    tokenizer = Qwen2Tokenizer(
        vocab=learner.get_vocab(),
        merges=_merges(learner),
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CONTROL_TOKENS),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in THINK_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def token_ids(tokenizer: Qwen2Tokenizer) -> TokenIds:
    """The ids for the model's configuration; the vocabulary is rounded up to a multiple of 64."""
    index = tokenizer.get_vocab()
    return TokenIds(
        vocab_size=-(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        pad=index["<|endoftext|>"],
        bos=index["<|endoftext|>"],
        eos=index["<|im_end|>"],
        vision_start=index["<|vision_start|>"],
        vision_end=index["<|vision_end|>"],
        image=index["<|image_pad|>"],
        video=index["<|video_pad|>"],
    )


def build_processor(size: Preset, tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """The processor with the preset's pixel bounds."""
    vision = {
        "patch_size": size.patch_size,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "size": {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def random_model(size: Preset, ids: TokenIds, seed: int) -> Qwen3VLForConditionalGeneration:
    """The network with seeded random weights, in float32 on the CPU; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(build_config(size, ids))
    for merger in model.model.visual.deepstack_merger_list:
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    model.generation_config = GenerationConfig(
        bos_token_id=ids.bos, eos_token_id=[ids.eos, ids.pad], pad_token_id=ids.pad, do_sample=False
    )
    return model

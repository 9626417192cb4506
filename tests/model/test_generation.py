import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import GenerationRequest, Generator
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM
from sightloom.model.packs import pack_documents
from sightloom.model.reasoning import majority, mean_logprob, self_consistent
from sightloom.model.sampling import Sampler, Sampling, never_written
from sightloom.model.thinking import Parsed

from .conftest import SIZES, conversation, picture


@pytest.fixture(scope="module")
def generator(nano: VLM) -> Generator:
    return Generator(nano, batch_size=16)


@pytest.fixture(scope="module")
def prompts(encoder: Encoder) -> list[Document]:
    rng = random.Random(4)
    modes = (None, True, False)
    return [
        encoder.prompt(conversation(rng, image=index % 5 != 4), picture(index, SIZES[index % 4]), modes[index % 3])
        for index in range(12)
    ]


@pytest.fixture(scope="module")
def requests(prompts: list[Document]) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt, 12 + index % 5, temperature=(0.0, 1.0, 0.7)[index % 3], top_p=(1.0, 0.9)[index % 2],
            top_k=(0, 40)[index % 2], seed=index, thinking_budget=(None, 3)[index % 2],
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip


def test_a_row_writes_the_same_tokens_alone_and_in_a_batch(generator: Generator, requests) -> None:
    together = generator.generate(requests)
    for request, row in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert alone.token_ids == row.token_ids
        assert alone.logprobs == pytest.approx(row.logprobs, abs=1e-5)  # fp32, other batch shapes; measured 1e-6


def test_greedy_equals_transformers_generate(nano: VLM, generator: Generator, prompts: list[Document]) -> None:
    ours = generator.generate([GenerationRequest(prompt, 10) for prompt in prompts[:5]])
    for prompt, row in zip(prompts, ours, strict=False):
        images = (
            {}
            if prompt.pixel_values is None
            else {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        )
        theirs = nano.model.generate(
            input_ids=prompt.input_ids[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            mm_token_type_ids=(prompt.input_ids == nano.model.config.image_token_id).int()[None],
            max_new_tokens=10,
            do_sample=False,
            suppress_tokens=never_written(nano.model.config).tolist(),
            **images,
        )
        assert tuple(theirs[0, len(prompt) :].tolist()) == row.token_ids


def test_one_prompt_asked_many_times_is_the_same_as_many_prompts(generator: Generator, prompts) -> None:
    shared = [GenerationRequest(prompts[1], 8, temperature=1.0, seed=seed) for seed in range(5)]
    prompt = prompts[1]
    copies = [
        replace(
            request, prompt=Document(prompt.input_ids, prompt.loss_mask, prompt.pixel_values, prompt.image_grid_thw)
        )
        for request in shared
    ]
    assert [row.token_ids for row in generator.generate(shared)] == [
        row.token_ids for row in generator.generate(copies)
    ]


def test_the_thinking_budget_closes_the_block_and_marks_the_forced_token(
    nano: VLM, generator: Generator, prompts
) -> None:
    close = nano.tokenizer.convert_tokens_to_ids("</think>")
    (row,) = generator.generate([GenerationRequest(prompts[1], 10, thinking_budget=4)])
    assert row.token_ids[4] == close and row.forced == tuple(index == 4 for index in range(10))
    (free,) = generator.generate([GenerationRequest(prompts[0], 10, thinking_budget=4)])
    assert not any(free.forced)  # the prompt opens no block


def test_rows_stop_at_their_own_stop_tokens_while_others_go_on(generator: Generator, prompts: list[Document]) -> None:
    free = generator.generate([GenerationRequest(prompt, 12) for prompt in prompts])
    stops = [row.token_ids[index % 7] for index, row in enumerate(free)]
    asked = [GenerationRequest(p, 12, stop_token_ids=(s,)) for p, s in zip(prompts, stops, strict=True)]
    for row, whole, stop in zip(generator.generate(asked), free, stops, strict=True):
        assert row.finish == "stop" and row.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert all(row.finish in ("stop", "length") for row in free)


def test_tokens_are_streamed_and_a_cancelled_row_ends_alone(generator: Generator, requests) -> None:
    streamed: dict[int, list[int]] = {}

    def on_token(index: int, token: int) -> None:
        streamed.setdefault(index, []).append(token)

    plain = generator.generate(requests)
    rows = generator.generate(requests, on_token, cancelled=lambda index: index == 2 and len(streamed[2]) >= 3)
    assert {index: tuple(tokens) for index, tokens in streamed.items()} == {
        i: row.token_ids for i, row in enumerate(rows)
    }
    assert rows[2].finish == "cancelled" and rows[2].token_ids == plain[2].token_ids[:3]
    assert [row.token_ids for i, row in enumerate(rows) if i != 2] == [
        r.token_ids for i, r in enumerate(plain) if i != 2
    ]


def test_log_probabilities_are_the_models_own(nano: VLM, generator: Generator, prompts: list[Document]) -> None:
    (row,) = generator.generate([GenerationRequest(prompts[9], 6, temperature=1.0, seed=1)])
    prompt = prompts[9]
    ids = torch.cat([prompt.input_ids, torch.tensor(row.token_ids)])[None]
    images = (
        {}
        if prompt.pixel_values is None
        else {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    )
    logits = nano.model(
        input_ids=ids, attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == nano.model.config.image_token_id).int(), **images,
    ).logits  # fmt: skip
    logits[..., never_written(nano.model.config)] = -torch.inf
    scores = logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
    assert scores.tolist() == pytest.approx(row.logprobs, abs=1e-4)


@pytest.fixture
def eager_for_pictures(nano: VLM) -> Iterator[torch.Tensor]:
    """The model's weights for picture tokens made so large that it would write little else; yields these ids."""
    ids, weight = never_written(nano.model.config), nano.model.lm_head.weight
    assert {nano.tokenizer.decode([token]) for token in ids.tolist()} == {
        "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
    }  # fmt: skip
    before = weight.detach().clone()
    with torch.no_grad():
        weight[ids] *= 40
    yield ids
    with torch.no_grad():
        weight.copy_(before)


def test_the_tokens_of_pictures_are_never_written_and_the_trainer_agrees_about_the_rest(
    nano: VLM, generator: Generator, prompts: list[Document], eager_for_pictures: torch.Tensor
) -> None:
    prompt = prompts[1]
    rows = generator.generate([GenerationRequest(prompt, 24, temperature=0.7, seed=seed) for seed in range(6)])
    written = {token for row in rows for token in row.token_ids}
    assert not written & set(eager_for_pictures.tolist())

    trainable = TrainableVLM(nano.model)
    documents = [
        Document(
            torch.cat([prompt.input_ids, torch.tensor(row.token_ids)]),
            torch.cat([torch.zeros(len(prompt), dtype=torch.bool), torch.ones(row.num_tokens, dtype=torch.bool)]),
            prompt.pixel_values,
            prompt.image_grid_thw,
        )
        for row in rows
    ]
    pack = pack_documents(documents, trainable.image_token_id, trainable.merge_size)
    theirs = torch.tensor([score for row in rows for score in row.logprobs])
    ours = trainable(pack, ("logprobs", "entropy"), temperature=0.7, sampled=True)
    torch.testing.assert_close(ours.logprobs, theirs, atol=1e-4, rtol=0)  # fp32, packed against cached
    (ours.logprobs.sum() + ours.entropy.sum()).backward()
    assert all(p.grad.isfinite().all() for p in trainable.parameters() if p.grad is not None)
    trainable.zero_grad()
    whole = trainable(pack, temperature=0.7).logprobs
    assert (ours.logprobs - whole).abs().max() > 0.1, "the picture tokens had no mass: the test shows nothing"


def test_nothing_asked_is_nothing_written(generator: Generator, prompts: list[Document]) -> None:
    assert generator.generate([]) == []
    (row,) = generator.generate([GenerationRequest(prompts[0], 0)])
    assert row.token_ids == () and row.finish == "length" and row.text == ""


def test_sampling_follows_the_filtered_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)

    def shares(**how: float) -> list[float]:
        sampler = Sampler([Sampling(seed=seed, **how) for seed in range(4000)], torch.device("cpu"))  # type: ignore[arg-type]
        return (sampler.choose(logits)[0].bincount(minlength=4) / 4000).tolist()

    error = 4 * math.sqrt(0.25 / 4000)  # four standard errors
    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=error)
    sharp = [p**2 / 0.365 for p in (0.5, 0.3, 0.15, 0.05)]
    assert shares(temperature=0.5) == pytest.approx(sharp, abs=error)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=error)
    assert shares(temperature=1.0, top_p=0.8) == pytest.approx([0.625, 0.375, 0, 0], abs=error)
    assert shares(temperature=1.0, top_p=0.1) == [1, 0, 0, 0]
    assert shares() == [1, 0, 0, 0]


def test_impossible_sampling_is_refused() -> None:
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="temperature"):
            Sampling(**wrong)  # type: ignore[arg-type]


def test_the_majority_wins_ties_go_to_the_likelier_and_malformed_samples_do_not_vote() -> None:
    answers = [
        Parsed("", text, good) for text, good in [("Blue.", True), ("red", True), ("blue", True), ("red", False)]
    ]
    assert (vote := majority(answers, [-3.0, -1.0, -2.0, 0.0])).index == 2 and vote.agreement == pytest.approx(2 / 3)
    assert majority(answers[:2], [-3.0, -1.0]).index == 1
    assert majority(answers[3:], [-3.0]).index == 0
    with pytest.raises(ValueError, match="a vote needs"):
        majority([], [])


def test_self_consistency_returns_one_of_its_samples(generator: Generator, prompts: list[Document]) -> None:
    sample, vote = self_consistent(generator, GenerationRequest(prompts[1], 8, thinking_budget=2), True, num_samples=4)
    assert 0 <= vote.index < 4 and 0 < vote.agreement <= 1 and mean_logprob(sample) < 0

"""Who answers: a model in this process; an OpenAI-compatible endpoint is in `endpoint.py`."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from sightloom.evaluation.examples import Example
from sightloom.model.chat import Encoder
from sightloom.model.generation import Generation, GenerationRequest, Generator
from sightloom.model.load import VLM
from sightloom.model.thinking import parse_response


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was answered. `error` says why there is no answer; such a prediction scores 0 and is listed.

    `thinking_outcome` is complete, truncated (by the token limit), off or malformed.
    """

    id: str
    content: str
    thinking: str | None
    thinking_outcome: str
    finish: str
    num_tokens: int
    latency_ms: float
    error: str | None = None

    @property
    def well_formed(self) -> bool:
        """Closed thinking, or none, and then an answer."""
        return self.error is None and self.thinking_outcome in ("complete", "off") and bool(self.content)


class Answerer(Protocol):
    """Answers examples greedily, in order."""

    def answer(
        self,
        examples: Sequence[Example],
        thinking: bool | None,
        max_new_tokens: int,
        done: Callable[[int], None] = ...,
    ) -> list[Prediction]:
        """One prediction an example.

        Args:
            examples: what is asked.
            thinking: True opens a think block, False closes it at once, None leaves it to the model (as in the stages
                before `reason`).
            max_new_tokens: bound on thinking and answer together.
            done: told how many more examples have been answered.
        """


def nobody(count: int) -> None:
    """Nobody is told."""
    del count


class LocalAnswerer:
    """Answers with a model in this process, in batches of prompts of similar length.

    Args:
        vlm: the loaded model.
        batch_size: prompts that are decoded together.
        thinking_budget: tokens after which an open think block is closed by force; None: no such limit. An answer whose
            thinking had to be closed counts as truncated.
    """

    def __init__(self, vlm: VLM, batch_size: int = 64, thinking_budget: int | None = None) -> None:
        self._vlm = vlm
        self._batch_size = batch_size
        self._budget = thinking_budget

    def answer(
        self,
        examples: Sequence[Example],
        thinking: bool | None,
        max_new_tokens: int,
        done: Callable[[int], None] = nobody,
    ) -> list[Prediction]:
        """Greedy answers; a picture that cannot be read is an error of its own example."""
        encoder = Encoder(self._vlm.processor)
        generator = Generator(self._vlm, self._batch_size)
        predictions: dict[str, Prediction] = {}
        asked: list[tuple[Example, GenerationRequest]] = []
        for example in examples:
            try:
                images = [_decode(image) for image in example.images]
                prompt = encoder.prompt(example.conversation, images[0] if images else None, thinking, images[1:])
            except ValueError as error:
                predictions[example.id] = failed(example.id, str(error), 0.0)
                done(1)
                continue
            asked.append((example, GenerationRequest(prompt, max_new_tokens, thinking_budget=self._budget)))
        asked.sort(key=lambda pair: len(pair[1].prompt))
        for start in range(0, len(asked), self._batch_size):
            batch = asked[start : start + self._batch_size]
            began = time.perf_counter()
            generations = generator.generate([request for _, request in batch])
            latency_ms = since_ms(began)
            for (example, _), generation in zip(batch, generations, strict=True):
                predictions[example.id] = _from_generation(example.id, generation, thinking, latency_ms)
            done(len(batch))
        return [predictions[example.id] for example in examples]


def _from_generation(id: str, generation: Generation, thinking: bool | None, latency_ms: float) -> Prediction:
    parsed = parse_response(generation.text, thinking_opened=thinking is True)
    if any(generation.forced) or (not parsed.well_formed and generation.finish == "length"):
        outcome = "truncated"
    elif not parsed.well_formed:
        outcome = "malformed"
    else:
        outcome = "off" if parsed.thinking is None else "complete"
    tokens = len(generation.token_ids)
    return Prediction(id, parsed.content, parsed.thinking, outcome, generation.finish, tokens, latency_ms)


def _decode(image: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image: {error}") from error


def failed(id: str, reason: str, latency_ms: float) -> Prediction:
    """A prediction that says why there is none."""
    return Prediction(id, "", None, "malformed", "error", 0, latency_ms, reason)


def since_ms(began: float) -> float:
    """Milliseconds since a reading of the performance counter."""
    return (time.perf_counter() - began) * 1000

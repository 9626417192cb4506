"""Best of n: several answers are sampled, a reward model (the export of an `rm` stage) chooses the one that is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol
from zlib import crc32

from PIL import Image

from sightloom.evaluation.answerers import LocalAnswerer, Prediction, _decode, _from_generation, failed
from sightloom.evaluation.examples import Example
from sightloom.model.chat import Encoder
from sightloom.model.generation import GenerationRequest, Generator
from sightloom.model.load import VLM
from sightloom.model.reasoning import VOTE_TEMPERATURE
from sightloom.records import Conversation, Message

_BATCH: Final = 64


class Judge(Protocol):
    """Scores the last answer of a conversation; higher is better."""

    def score(self, conversation: Conversation, image: Image.Image | None) -> float:
        """Comparable between answers to the same question only."""


class BestOf(LocalAnswerer):
    """Samples `num_samples` answers at 0.7 and keeps the one that the judge puts first, a well-formed one if there is.

    The same model, judge and number give the same answers: seeds come from the examples' ids.
    """

    def __init__(self, vlm: VLM, judge: Judge, num_samples: int, thinking_budget: int | None = None) -> None:
        super().__init__(vlm, _BATCH, thinking_budget)
        self._judge, self._num_samples = judge, num_samples

    def answer(
        self,
        examples: Sequence[Example],
        thinking: bool | None,
        max_new_tokens: int,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """One prediction an example; a picture that cannot be read is an error of its own example."""
        encoder, generator = Encoder(self._vlm.processor), Generator(self._vlm, _BATCH)
        predictions = []
        for example in examples:
            began = time.perf_counter()
            try:
                if len(example.images) > 1:
                    raise ValueError("the reward model judges answers about one picture, the question shows several")
                image = None if example.image is None else _decode(example.image)
                prompt = encoder.prompt(example.conversation, image, thinking)
            except ValueError as error:
                predictions.append(failed(example.id, str(error), 0.0))
                done(1)
                continue
            first = GenerationRequest(
                prompt,
                max_new_tokens,
                temperature=VOTE_TEMPERATURE,
                seed=crc32(example.id.encode()),
                thinking_budget=self._budget,
            )
            requests = [replace(first, seed=first.seed + number) for number in range(self._num_samples)]
            generations = generator.generate(requests)
            latency_ms = (time.perf_counter() - began) * 1000
            answers = [_from_generation(example.id, one, thinking, latency_ms) for one in generations]
            predictions.append(self._best(example, image, answers))
            done(1)
        return predictions

    def _best(self, example: Example, image: Image.Image | None, answers: list[Prediction]) -> Prediction:
        candidates = [answer for answer in answers if answer.well_formed] or answers
        said = dict.fromkeys(answer.content for answer in candidates)
        scores = {content: self._judge.score(_answered(example.conversation, content), image) for content in said}
        return max(candidates, key=lambda answer: scores[answer.content])


def _answered(conversation: Conversation, content: str) -> Conversation:
    return replace(conversation, messages=(*conversation.messages, Message("assistant", content)))

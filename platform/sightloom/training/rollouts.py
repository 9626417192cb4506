"""Scored groups of responses for one step of policy optimisation (training.md §7).

Prompts come from one stream that all workers walk together; a worker generates whole groups, so advantages need no
exchange. Which prompts a step uses, and every token of them, follow from (seed, step, weights) alone, not from the
number of workers. Groups without signal are replaced by the stream's next prompts, a bounded number of rounds.
"""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sightloom import storage
from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import Generation, GenerationRequest
from sightloom.model.thinking import parse_response
from sightloom.objectives.advantages import dr_grpo, g2rpo, grpo, rloo
from sightloom.objectives.rewards import format_reward, length_reward, score
from sightloom.records import Answer
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.engines import RolloutEngine
from sightloom.training.objective_options import Advantage, RlObjective
from sightloom.training.order import Order, keyed
from sightloom.training.parallel import Workers
from sightloom.training.reader import Reader

_SAMPLE_DRAW: Final = 8  # purpose of the keyed draw
_PARTS: Final = ("accuracy", "format", "length")


@dataclass(frozen=True, slots=True)
class Response:
    """One scored response; `parts` are the reward's parts before weighting, each in [0, 1] or NaN."""

    generation: Generation
    seed: int
    parts: dict[str, float]
    reward: float


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one prompt."""

    row: int
    uid: str
    task: str
    domain: str
    prompt: Document
    responses: tuple[Response, ...]
    advantages: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the responses that could be scored."""
        values = [r.parts["accuracy"] for r in self.responses if not math.isnan(r.parts["accuracy"])]
        return sum(values) / len(values) if values else math.nan


def advantages(rewards: Sequence[float], options: Advantage) -> tuple[float, ...]:
    """Advantages of one group's rewards; NaN rewards get 0."""
    rewards_PG = torch.tensor([list(rewards)], dtype=torch.float64)
    if options.name == "g2rpo":
        values = g2rpo(rewards_PG, unit_variance=options.unit_variance)
    else:
        values = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}[options.name](rewards_PG)
    return tuple(values[0].tolist())


def rewarded(generation: Generation, seed: int, answer: Answer, task: str, options: RlObjective) -> Response:
    """Score one response of a prompt that opened the think block."""
    parsed = parse_response(generation.text, thinking_opened=True)
    bounds = options.length.get(task, options.length["default"])
    parts = {
        "accuracy": score(parsed.content, answer).value,
        "format": format_reward(parsed).value,
        "length": length_reward(generation.num_tokens, bounds).value,
    }
    return Response(generation, seed, parts, sum(getattr(options.rewards, name) * parts[name] for name in _PARTS))


class Rollouts:
    """This worker's groups, step after step. Tables of all responses are left in `folder`."""

    def __init__(
        self,
        options: RlObjective,
        stage: Stage,
        corpus: Corpus,
        encoder: Encoder,
        engine: RolloutEngine,
        workers: Workers,
        seed: int,
        folder: Path,
    ) -> None:
        self._options, self._corpus, self._encoder = options, corpus, encoder
        self._engine, self._workers, self._seed, self._folder = engine, workers, seed, folder
        self._window = stage.batch.window
        self._order = Order(corpus.sources(stage), seed, self._window)
        self._reader = Reader(corpus)
        self.cursor = 0
        self.numbers: dict[str, float] = {}

    def get(self, step: int) -> list[Group]:
        """The groups of a step that carry signal; all workers call it together."""
        rollout = self._options.rollout
        self._engine.load_weights(step, None)
        began = time.perf_counter()
        kept: list[Group] = []
        everything: list[Group] = []
        missing, rounds = rollout.prompts, 0
        while missing > 0 and rounds < rollout.rounds:
            rows = [self._row(self.cursor + i) for i in range(missing)]
            self.cursor += missing
            made = self._generate(rows[self._workers.rank :: self._workers.world], step)
            good = [group for group in made if rollout.keep[0] <= group.accuracy <= rollout.keep[1]]
            everything += made
            kept += good
            missing -= sum(self._workers.gather_counts(len(good)))
            rounds += 1
        self._note(everything, kept, time.perf_counter() - began)
        self._write(step, everything)
        return kept

    def _row(self, position: int) -> int:
        window, place = divmod(position, self._window)
        return int(self._order.window(window)[place])

    def _generate(self, rows: list[int], step: int) -> list[Group]:
        rollout = self._options.rollout
        picked = self._reader.read(torch.tensor(rows, dtype=torch.int64).numpy()) if rows else []
        requests: list[GenerationRequest] = []
        prompts: list[Document] = []
        for item in picked:
            conversation = item.sample.conversation
            conversation = conversation.with_image() if item.image is not None else conversation
            prompts.append(self._encoder.prompt(conversation, item.image, thinking=True))
            draws = keyed(self._seed, _SAMPLE_DRAW, item.row, step).integers(0, 2**62, rollout.n)
            requests += [
                GenerationRequest(prompts[-1], rollout.max_new_tokens, rollout.temperature, seed=int(seed))
                for seed in draws
            ]
        generations = self._engine.generate(requests)
        groups = []
        for number, (item, prompt) in enumerate(zip(picked, prompts, strict=True)):
            conversation = item.sample.conversation
            if conversation.answer is None:
                continue  # the mixture chooses rows with an answer
            part = slice(number * rollout.n, (number + 1) * rollout.n)
            responses = tuple(
                rewarded(generation, request.seed, conversation.answer, conversation.task, self._options)
                for generation, request in zip(generations[part], requests[part], strict=True)
            )
            weights = advantages([response.reward for response in responses], self._options.advantage)
            groups.append(
                Group(item.row, item.sample.uid, conversation.task, conversation.domain, prompt, responses, weights)
            )
        return groups

    def _note(self, everything: list[Group], kept: list[Group], seconds: float) -> None:
        responses = [response for group in everything for response in group.responses]
        sums = {
            "responses": float(len(responses)),
            "tokens": float(sum(response.generation.num_tokens for response in responses)),
            "stopped": float(sum(response.generation.finish == "stop" for response in responses)),
            "groups": float(len(everything)),
            "kept": float(len(kept)),
            "seconds": seconds,
        }
        for name in _PARTS:
            sums[name] = sum(r.parts[name] for r in responses if not math.isnan(r.parts[name]))
        total = self._workers.sum_all(sums)
        count = max(total["responses"], 1.0)
        self.numbers = {f"rollout/{name}": total[name] / count for name in _PARTS}
        self.numbers |= {
            "rollout/length": total["tokens"] / count,
            "rollout/stopped_share": total["stopped"] / count,
            "rollout/groups": total["groups"],
            "rollout/kept_share": total["kept"] / max(total["groups"], 1.0),
            "rollout/tokens_per_s": total["tokens"] * self._workers.world / max(total["seconds"], 1e-9),
        }

    def _write(self, step: int, groups: list[Group]) -> None:
        rows: list[dict[str, Any]] = []
        for group in groups:
            for sample, (response, advantage) in enumerate(zip(group.responses, group.advantages, strict=True)):
                generation = response.generation
                rows.append(
                    {
                        "uid": group.uid,
                        "group": group.row,
                        "sample": sample,
                        "task": group.task,
                        "domain": group.domain,
                        "version": step,
                        "seed": response.seed,
                        "token_ids": list(generation.token_ids),
                        "logprobs": list(generation.logprobs),
                        "finish": generation.finish,
                        **{f"reward_{name}": response.parts[name] for name in _PARTS},
                        "reward": response.reward,
                        "length": generation.num_tokens,
                        "advantage": advantage,
                        "text": generation.text,
                    }
                )
        if rows:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), buffer)
            name = f"step-{step:06d}-{self._workers.rank}of{self._workers.world}.parquet"
            storage.write(str(self._folder / name), buffer.getvalue())

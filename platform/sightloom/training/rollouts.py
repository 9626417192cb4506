"""Scored groups of responses for one step of policy optimisation (training.md §7).

Prompts come from one stream that all workers walk together; a worker generates whole groups, so advantages need no
exchange. Which prompts a step uses, and every token of them, follow from (seed, step, weights) alone, not from the
number of workers. Groups without signal are replaced by the stream's next prompts, a bounded number of rounds.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from sightloom.errors import SightloomError
from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import Generation, GenerationRequest
from sightloom.model.thinking import parse_response
from sightloom.objectives.advantages import dr_grpo, g2rpo, grpo, rloo
from sightloom.objectives.rewards import Reward, format_reward, length_reward
from sightloom.records import Answer
from sightloom.training import rollout_page, rollout_rows
from sightloom.training.corpus import Corpus, Picked
from sightloom.training.curriculum import Stage
from sightloom.training.engines import RolloutEngine
from sightloom.training.objective_options import Advantage, RlObjective
from sightloom.training.order import Order, keyed
from sightloom.training.parallel import Workers
from sightloom.training.reader import Reader
from sightloom.training.rollout_numbers import rollout_numbers
from sightloom.training.rollout_page import PAGES
from sightloom.training.rollout_rows import PARTS, Group, Response
from sightloom.training.scoring import Scorers

_log = logging.getLogger(__name__)
_PAGE_EVERY: Final = 10  # steps between two pages of rollouts
_IDLE_WARNING: Final = 10  # steps without signal between two warnings
_MAX_FAILING: Final = 3  # steps in a row in which an engine failed
_SAMPLE_DRAW: Final = 8  # purpose of the keyed draw


def advantages(rewards: Sequence[float], options: Advantage) -> tuple[float, ...]:
    """Advantages of one group's rewards; NaN rewards get 0."""
    rewards_PG = torch.tensor([list(rewards)], dtype=torch.float64)
    if options.name == "g2rpo":
        values = g2rpo(rewards_PG, unit_variance=options.unit_variance)
    else:
        values = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}[options.name](rewards_PG)
    return tuple(values[0].tolist())


def across_tasks(groups: Sequence[Group], options: Advantage, workers: Workers) -> list[Group]:
    """The groups with advantages ranked over all groups of their task, of all workers; they call it together."""
    ours = [(group.task, [response.reward for response in group.responses]) for group in groups]
    parts = workers.gather(ours)
    everyone = [entry for part in parts for entry in part]
    if not everyone:
        return list(groups)
    tasks = sorted({task for task, _ in everyone})
    tasks_P = torch.tensor([tasks.index(task) for task, _ in everyone])
    rewards_PG = torch.tensor([rewards for _, rewards in everyone], dtype=torch.float64)
    values = g2rpo(rewards_PG, tasks_P, "group+task", options.recenter, options.unit_variance)
    before = sum(len(part) for part in parts[: workers.rank])
    mine = values[before : before + len(groups)].tolist()
    return [replace(group, advantages=tuple(row)) for group, row in zip(groups, mine, strict=True)]


def rewarded(
    generation: Generation, seed: int, answer: Answer, task: str, options: RlObjective, scorers: Scorers
) -> Response:
    """Score one response of a prompt that opened the think block; one that was cut off has not answered.

    Else a policy learns to go on naming things until the limit: some of what stands there then is right.
    """
    parsed = parse_response(generation.text, thinking_opened=True)
    bounds = options.length.get(task, options.length["default"])
    cut = generation.finish != "stop"
    accuracy = Reward(0.0, "cut off by the limit") if cut else scorers.score(parsed.content, answer)
    parts = {
        "accuracy": accuracy.value,
        "format": format_reward(parsed).value,
        "length": length_reward(generation.num_tokens, bounds).value,
    }
    total = sum(getattr(options.rewards, name) * parts[name] for name in PARTS)
    return Response(generation, seed, parts, total, accuracy.detail)


class Rollouts:
    """This worker's groups, step after step.

    Tables of all responses are left in `folder`; a step whose table is there already is read, not generated: a restart
    goes on with the same samples. An engine that fails costs the groups that it was writing, and is counted; one that
    fails in three steps in a row ends the run.
    """

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
        scorers: Scorers | None = None,
    ) -> None:
        self._options, self._corpus, self._encoder = options, corpus, encoder
        self._engine, self._workers, self._seed, self._folder = engine, workers, seed, folder
        self._window = stage.batch.window
        self._order = Order(corpus.sources(stage), seed, self._window)
        self._reader = Reader(corpus)
        self._scorers = scorers or Scorers()
        self.cursor = 0
        self.idle = 0  # steps in a row that had no group with signal
        self._failing = 0  # steps in a row in which an engine failed
        self._failures: list[str] = []  # of this worker's engine in this step
        self.numbers: dict[str, float] = {}

    def get(self, step: int) -> list[Group]:
        """The groups of a step that carry signal; all workers call it together.

        Raises:
            SightloomError: an engine failed in three steps in a row; it is the same on all workers.
        """
        rollout = self._options.rollout
        self._failures = []
        self._engine.load_weights(step, None)
        began = time.perf_counter()
        kept: list[Group] = []
        everything: list[Group] = []
        missing, rounds = rollout.prompts, 0
        written = self._written(step)
        while missing > 0 and rounds < rollout.rounds:
            rows = [self._row(self.cursor + i) for i in range(missing)]
            self.cursor += missing
            made = self._groups(rows[self._workers.rank :: self._workers.world], step, written)
            good = [group for group in made if self._has_signal(group)]
            everything += made
            kept += good
            missing -= sum(self._workers.gather_counts(len(good)))
            rounds += 1
        if self._options.advantage.scope == "group+task":
            kept = across_tasks(kept, self._options.advantage, self._workers)
        self.numbers = rollout_numbers(everything, kept, time.perf_counter() - began, self._workers)
        self._warn_if_idle()
        self._stop_if_failing(step)
        if written is None:
            ranked = {group.row: group for group in kept}
            rows_of = [ranked.get(group.row, group) for group in everything]
            rollout_rows.write(self._table(step), step, rows_of)
            if step % _PAGE_EVERY == 0 and self._workers.rank == 0:
                rollout_page.write(self._folder.parent / PAGES, step, rows_of, self._corpus)
        return kept

    def _warn_if_idle(self) -> None:
        self.idle = 0 if self.numbers["rollout/kept_share"] else self.idle + 1
        self.numbers["rollout/steps_without_signal"] = float(self.idle)
        if self.idle and self.idle % _IDLE_WARNING == 0:
            _log.warning(
                "no group of responses carried signal in %d steps: all were right or wrong beyond what keep allows; "
                "%.2f of the responses are right",
                self.idle,
                self.numbers["rollout/accuracy"],
            )

    def _stop_if_failing(self, step: int) -> None:
        failures = [failure for part in self._workers.gather(self._failures) for failure in part]
        self.numbers["rollout/engine_failures"] = float(len(failures))
        self._failing = self._failing + 1 if failures else 0
        if self._failing >= _MAX_FAILING:
            raise SightloomError(
                f"the rollout engine failed in {_MAX_FAILING} steps in a row, up to step {step}; last: {failures[-1]}",
                "the state before them is kept; raise rollout.limit_s if it was too slow, then run the same again",
            )

    def close(self) -> None:
        """End the processes of scoring and writing."""
        self._scorers.close()
        self._engine.close()

    def _has_signal(self, group: Group) -> bool:
        low, high = self._options.rollout.keep
        return low <= group.accuracy <= high

    def _table(self, step: int) -> str:
        return str(self._folder / f"step-{step:06d}-{self._workers.rank}of{self._workers.world}.parquet")

    def _written(self, step: int) -> dict[int, tuple[Response, ...]] | None:
        """The step as it was written before a restart, if it was on every worker."""
        found = rollout_rows.read(self._table(step))
        return found if all(self._workers.gather(found is not None)) else None

    def _row(self, position: int) -> int:
        window, place = divmod(position, self._window)
        return int(self._order.window(window)[place])

    def _groups(self, rows: list[int], step: int, written: dict[int, tuple[Response, ...]] | None) -> list[Group]:
        if written is not None:
            rows = [row for row in rows if row in written]  # what a failing engine lost is not there
        picked = self._reader.read(torch.tensor(rows, dtype=torch.int64).numpy()) if rows else []
        prompts: list[Document] = []
        for item in picked:
            conversation = item.sample.conversation
            conversation = conversation.with_image() if item.image is not None else conversation
            prompts.append(self._encoder.prompt(conversation, item.image, thinking=True))
        if written is not None:
            answered = [written[item.row] for item in picked]
        else:
            answered = self._answered(picked, prompts, step)
            picked, prompts = picked[: len(answered)], prompts[: len(answered)]
        return [
            Group(
                item.row,
                item.sample.uid,
                item.sample.conversation.task,
                item.sample.conversation.domain,
                prompt,
                responses,
                advantages([response.reward for response in responses], self._options.advantage),
            )
            for item, prompt, responses in zip(picked, prompts, answered, strict=True)
        ]

    def _answered(self, picked: list[Picked], prompts: list[Document], step: int) -> list[tuple[Response, ...]]:
        """Write and score the responses to each prompt; none where the engine failed."""
        rollout = self._options.rollout
        requests: list[GenerationRequest] = []
        for item, prompt in zip(picked, prompts, strict=True):
            draws = keyed(self._seed, _SAMPLE_DRAW, item.row, step).integers(0, 2**62, rollout.n)
            requests += [
                GenerationRequest(prompt, rollout.max_new_tokens, rollout.temperature, seed=int(seed), image=item.image)
                for seed in draws
            ]
        try:
            generations = self._engine.generate(requests)
        except Exception as error:  # noqa: BLE001  an engine may be another program; it is said, counted, and bounded
            self._failures.append(f"{type(error).__name__}: {error}")
            _log.warning("step %d goes on without %d responses: %s", step, len(requests), self._failures[-1])
            return []
        answered = []
        for number, item in enumerate(picked):
            conversation = item.sample.conversation
            if conversation.answer is None:
                raise SightloomError(
                    f"prompt '{item.sample.uid}' has no answer to check, though the table of its shard says so",
                    "run `sightloom verify` on the shards",
                )
            part = slice(number * rollout.n, (number + 1) * rollout.n)
            answered.append(
                tuple(
                    rewarded(
                        generation,
                        request.seed,
                        conversation.answer,
                        conversation.task,
                        self._options,
                        self._scorers,
                    )
                    for generation, request in zip(generations[part], requests[part], strict=True)
                )
            )
        return answered

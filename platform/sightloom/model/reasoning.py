"""Reasoning at inference: answers of several samples put together by majority (self-consistency).

The thinking budget is part of generation itself (`GenerationRequest.thinking_budget`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sightloom.model.thinking import Parsed, parse_response
from sightloom.objectives.rewards.choice import normalised

if TYPE_CHECKING:  # a router counts votes, and loads no torch
    from sightloom.model.generation import Generation, GenerationRequest, Generator

VOTE_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Vote:
    """The sample that stands for the majority, how many agree with it, and their share of the well-formed samples."""

    index: int
    votes: int
    agreement: float


def majority(answers: Sequence[Parsed], scores: Sequence[float], same: Callable[[str], str] = normalised) -> Vote:
    """The answer that most samples give; ties go to the higher score, and so does the choice inside the majority.

    Args:
        scores: mean log-probability of each sample.
        same: what makes two answers the same, by default the rewards' normal form of text.

    Samples that are not well formed vote only where none is. Wang et al. 2023.

    Raises:
        ValueError: no answers, or not one score for each.
    """
    if not answers or len(answers) != len(scores):
        raise ValueError(f"a vote needs answers with a score each, got {len(answers)} and {len(scores)}")
    voters = [index for index, answer in enumerate(answers) if answer.well_formed] or list(range(len(answers)))
    camps: dict[str, list[int]] = {}
    for index in voters:
        camps.setdefault(same(answers[index].content), []).append(index)
    winner = max(camps.values(), key=lambda camp: (len(camp), max(scores[index] for index in camp)))
    return Vote(max(winner, key=lambda index: scores[index]), len(winner), len(winner) / len(voters))


def self_consistent(
    generator: "Generator", request: "GenerationRequest", thinking_opened: bool, num_samples: int
) -> "tuple[Generation, Vote]":
    """Sample one request several times, with seeds of its own, and return the majority's best sample.

    A request of temperature 0 is sampled at 0.7.
    """
    temperature = request.temperature or VOTE_TEMPERATURE
    requests = [replace(request, temperature=temperature, seed=request.seed + index) for index in range(num_samples)]
    samples = generator.generate(requests)
    answers = [parse_response(sample.text, thinking_opened) for sample in samples]
    vote = majority(answers, [mean_logprob(sample) for sample in samples])
    return samples[vote.index], vote


def mean_logprob(generation: "Generation") -> float:
    """Mean log-probability of the tokens that were chosen, not forced; −inf if none was."""
    chosen = [value for value, forced in zip(generation.logprobs, generation.forced, strict=True) if not forced]
    return sum(chosen) / len(chosen) if chosen else float("-inf")

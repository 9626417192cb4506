"""Whether an answer is right: the training rewards' own judgement, so that both ends of the road mean the same."""

import math
from dataclasses import replace

from sightloom.objectives.rewards import score
from sightloom.records import Answer

BOX_IOU = 0.5
RELAXED = 0.05  # of a number, where the answer gives no tolerance of its own (ChartQA's measure, Masry et al. 2022)
NEAR_POINT = math.exp(-0.5)  # within one σ (50 thousandths of a side) of a bare point


def is_right(content: str, answer: Answer) -> bool:
    """Right or wrong: a box from IoU 0.5 on, a bare point within one σ, everything else only with the full reward.

    A reward that cannot be computed (NaN) is wrong.
    """
    reward = score(content, answer).value
    if answer.kind == "box":
        return reward >= BOX_IOU
    if answer.kind == "point":
        return reward >= NEAR_POINT
    return reward >= 1.0 - 1e-9


def relaxed(content: str, answer: Answer) -> bool:
    """Right, or a number within 5 %."""
    if answer.kind == "number" and answer.tolerance is None:
        answer = replace(answer, tolerance=RELAXED)
    return is_right(content, answer)

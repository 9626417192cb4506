"""Whether an answer is right: the training rewards' own judgement, so that both ends of the road mean the same."""

import math

from sightloom.objectives.rewards import score
from sightloom.records import Answer

BOX_IOU = 0.5
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

"""Whether an answer is right: the training rewards' own judgement, so that both ends of the road mean the same."""

from sightloom.objectives.rewards import score
from sightloom.records import Answer

BOX_IOU = 0.5


def is_right(content: str, answer: Answer) -> bool:
    """Right or wrong: a box from IoU 0.5 on, everything else only with the full reward.

    A reward that cannot be computed (NaN) is wrong.
    """
    reward = score(content, answer).value
    return reward >= (BOX_IOU if answer.kind == "box" else 1.0 - 1e-9)

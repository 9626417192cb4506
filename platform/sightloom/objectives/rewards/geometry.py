"""Boxes and points on a picture, in 0–1000 of its sides."""

import math
from collections.abc import Sequence
from typing import Final

from sightloom.objectives.rewards.number import numbers
from sightloom.objectives.rewards.reward import Reward, right_or_wrong
from sightloom.records import Answer

POINT_SIGMA: Final = 50.0  # thousandths of a side
SIDE: Final = 1000.0


def score_box(content: str, answer: Answer) -> Reward:
    """Intersection over union of the one box that the content names."""
    box = _coordinates(content, 4)
    if box is None or not (box[0] < box[2] and box[1] < box[3]):
        return Reward(0.0, "names no box")
    value = iou(box, [float(side) for side in answer.value])
    return Reward(value, f"IoU {value:.2f}")


def score_point(content: str, answer: Answer) -> Reward:
    """Near a true point: e^(−d²/2σ²), σ = 50; where the truth is a box: 1 inside it, else 0."""
    point = _coordinates(content, 2)
    if point is None:
        return Reward(0.0, "names no point")
    truth = [float(value) for value in answer.value]
    if len(truth) == 4:
        return right_or_wrong(truth[0] <= point[0] <= truth[2] and truth[1] <= point[1] <= truth[3])
    distance = math.dist(point, truth)
    return Reward(math.exp(-(distance**2) / (2 * POINT_SIGMA**2)), f"{distance:.0f} away")


def iou(left: Sequence[float], right: Sequence[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2]; 0 where both are empty."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (left, right)) - shared
    return shared / union if union > 0 else 0.0


def _coordinates(content: str, wanted: int) -> list[float] | None:
    found = numbers(content.replace("[", " ").replace("(", " ").replace(",", " , "))
    inside = all(0 <= value <= SIDE for value in found)
    return found if len(found) == wanted and inside else None

"""Scores answers in a process of its own, so that a scorer that hangs or crashes costs one answer, never a run."""

import math
import sys
from collections.abc import Sequence
from typing import Final

from sightloom.objectives.rewards import Reward
from sightloom.records import Answer
from sightloom.training.child import Child, ChildLost

LIMIT_S: Final = 10.0  # for one answer
_START_S: Final = 120.0  # a new process imports first, on a machine that may be busy


class Scorers:
    """The scoring process, started at the first answer and again after each that it did not survive.

    Args:
        program: what is started; it speaks as `sightloom.training.scorer` does.
    """

    def __init__(self, limit_s: float = LIMIT_S, program: Sequence[str] = ("-m", "sightloom.training.scorer")) -> None:
        self._limit_s, self._program = limit_s, program
        self._child: Child | None = None

    def score(self, content: str, answer: Answer) -> Reward:
        """The reward of one answer; NaN with the reason where the scorer failed, died or took too long."""
        limit_s = _START_S if self._child is None else self._limit_s
        self._child = self._child or Child([sys.executable, *self._program])
        try:
            reply = self._child.ask({"content": content, "answer": answer.to_json()}, limit_s)
        except ChildLost as lost:
            self._child = None
            return Reward(math.nan, f"the scorer {lost}")
        return Reward(math.nan if reply["value"] is None else float(reply["value"]), str(reply["detail"]))

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

from typing import Any

import pytest
from pydantic import ValidationError

from sightloom.training.objective_options import RlObjective


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"advantage": {"name": "grpo", "scope": "group+task"}}, "g2rpo's; grpo has none"),
        ({"advantage": {"name": "g2rpo", "recenter": True}}, "no effect with scope: group"),
        ({"loss": {"name": "gspo", "aggregate": "token"}}, "one ratio a response"),
        ({"loss": {"name": "cispo", "dual_clip": 3.0}}, "dual_clip belongs to loss clip"),
        ({"entropy": {"bands": {"count": (0.1, 0.5)}}}, "needs the key 'default'"),
        ({"entropy": {"bands": {"default": (0.5, 0.1)}}}, "0 <= low <= high"),
        ({"rewards": {"accuracy": 0.5, "politeness": 0.5}}, "politeness"),
        ({"kl": {"coef": 0.1, "estimator": "k4"}}, "k3_k2grad"),
    ],
)
def test_what_cannot_take_effect_is_refused_before_a_run(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RlObjective(kind="rl", **options)

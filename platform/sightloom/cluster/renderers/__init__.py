"""A job in the words of each system that can run it: pure functions from a spec to text."""

import json
from collections.abc import Callable
from typing import Any, Final

from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.renderers.kuberay import as_yaml, raycluster, raycronjob, rayjob
from sightloom.cluster.renderers.rayservice import rayservice
from sightloom.cluster.renderers.submission import Placed, script, submission
from sightloom.config import nearest
from sightloom.errors import UserMistake

__all__ = ["TARGETS", "Placed", "render"]


def _yaml(made: Callable[[JobSpec, Placed], dict[str, Any]]) -> Callable[[JobSpec, Placed], str]:
    return lambda spec, placed: as_yaml(made(spec, placed))


TARGETS: Final[dict[str, Callable[[JobSpec, Placed], str]]] = {
    "ray-jobs": lambda spec, placed: json.dumps(submission(spec, placed, 1), indent=2) + "\n",
    "rayjob": _yaml(rayjob),
    "raycronjob": _yaml(raycronjob),
    "rayservice": _yaml(rayservice),
    "raycluster": _yaml(raycluster),
    "cli": script,
}


def render(spec: JobSpec, target: str, placed: Placed) -> str:
    """Say a job in another system's words.

    Args:
        spec: the job.
        target: `ray-jobs` (the body of Ray's Jobs API), `rayjob`, `raycronjob`, `rayservice`, `raycluster` (KubeRay)
            or `cli` (a shell script).
        placed: where the code lies, and the image.

    Raises:
        UserMistake: no such target, or the target has no word for something that the job asks for.
    """
    if target not in TARGETS:
        raise UserMistake(f"--to {target} is not known{nearest(target, list(TARGETS))}")
    return TARGETS[target](spec, placed)

"""What is known of a stage and of the model it starts from, and the run it is written down in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.tracking import Tracker


@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of a stage; `status` is promoted, or warned when a gate failed and the file says `gates: warn`.

    `init`: what its start was measured to be; `trained_on`: the domains of its mixture; `dropped`: rows of each entry
    of the mixture that it could not use, by reason; `registered`: the version in the registry, where it was asked for.
    """

    name: str
    objective: str
    steps: int
    samples: int
    seconds: float
    metrics: dict[str, float]
    status: str
    model_dir: str
    digest: str
    run_id: str
    gates: tuple[str, ...]
    init: dict[str, float] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    registered: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A model that a stage may start from, with what it was measured to be."""

    folder: Path
    digest: str
    metrics: Mapping[str, float]


def tracked_run(tracker: Tracker, file: Path, name: str, parent: str | None, params: Mapping[str, str]) -> str:
    """The run kept in `file`, set back to running, or a new one."""
    if file.is_file():
        kept = storage.read_json(str(file))
        if kept["uri"] == tracker.uri:
            tracker.resume_run(kept["run_id"])
            return str(kept["run_id"])
    run_id = tracker.start_run(name, parent, {}, params)
    storage.write(str(file), canonical_json({"run_id": run_id, "uri": tracker.uri}))
    return run_id

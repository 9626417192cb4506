"""`python -m sightloom.cluster.archive LOG EXIT_CODE`: a job's driver log into an MLflow run of the job's name."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sightloom.errors import SightloomError
from sightloom.tracking import MlflowTracker

_CONFIG: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # where Ray tells a driver what it was submitted with
_TAG: Final = "mlflow.tag."
_STOPPED: Final = (130, 137, 143)


def keep(log: Path, code: int, environment: Mapping[str, str]) -> str:
    """Write the run: tags say what it was and how it ended, `driver.log` what it wrote. Returns the run's id.

    Raises:
        SightloomError: MLflow does not answer.
    """
    facts: dict[str, str] = json.loads(environment.get(_CONFIG, "{}")).get("metadata", {})
    name = facts.get("job_submission_id", "job")
    tags = {key.removeprefix(_TAG): value for key, value in facts.items() if key.startswith(_TAG)}
    tags |= {key: facts[key] for key in ("sightloom.name", "sightloom.kind", "sightloom.digest") if key in facts}
    tags |= {"sightloom.job": name, "sightloom.exit_code": str(code)}
    tracker = MlflowTracker(environment["MLFLOW_TRACKING_URI"], facts.get("mlflow.experiment", "jobs"))
    run_id = tracker.start_run(name, tags=tags)
    tracker.log_file(run_id, log)
    tracker.end_run(run_id, "FINISHED" if code == 0 else "KILLED" if code in _STOPPED else "FAILED")
    shutil.rmtree(log.parent)
    return run_id


def main() -> None:
    """Archive; a store that is away costs the archive, never the job."""
    log, code = Path(sys.argv[1]), int(sys.argv[2])
    try:
        keep(log, code, os.environ)
    except SightloomError as error:
        sys.stderr.write(f"the log is not in MLflow: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()

"""What MLflow is told of a stage: the data it drew on, its events while it runs, samples of answers, its model."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sightloom.errors import SightloomError
from sightloom.progress import Step
from sightloom.registry import Registry
from sightloom.registry.lineage import record_export
from sightloom.tracking import Tracker
from sightloom.training.corpus import Drawn
from sightloom.training.loop import Event
from sightloom.training.previews import TABLE

_log = logging.getLogger(__name__)
_SHOWN: Final = ("train/loss", "train/caption_loss", "rollout/accuracy", "speed/samples_per_s")
ROLLOUTS: Final = "rollouts"
PREVIEWS: Final = "predictions"  # folder among a run's artifacts


class Notes:
    """The notes of one stage's run; the driver alone writes them.

    Args:
        tracker: where they go.
        run_id: the stage's run.
    """

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self.run_id = tracker, run_id
        self._shown = self._logged = self._saved = 0
        self._tables: list[str] = []

    def inputs(self, drawn: list[Drawn], manifests: Mapping[str, Any]) -> None:
        """One data set for each entry of the mixture: its manifest's digest, rows, weight, domains and drops."""
        own = next(iter(manifests.values()))
        for entry in drawn:
            manifest = manifests[entry.manifest] if entry.manifest else own
            facts = {
                "rows": str(len(entry.rows)),
                "weight": f"{entry.weight:g}",
                "domain": ",".join(entry.domains),
                "dropped": json.dumps(entry.dropped),
            }
            self._tracker.log_input(self.run_id, entry.name, manifest.digest, "training", facts)

    def hear(self, event: Event, step: Step) -> None:
        """An event of the workers; a restarted group says some steps twice, which is noted once."""
        kind = event["kind"]
        if kind == "unusable":
            self._tracker.set_tags(self.run_id, {f"checkpoint.unusable.{event['name']}": event["reason"]})
        elif kind == "system":
            self._tracker.log_metrics(self.run_id, event["metrics"], event["step"])
        elif kind == "checkpoint":
            if event["step"] > self._saved:  # a restarted group may save a step again
                self._saved = event["step"]
                self._tracker.log_metrics(self.run_id, event["metrics"], self._saved)
            if event["problem"]:
                _log.warning("checkpoint of step %d left out: %s", event["step"], event["problem"])
        else:
            metrics = event.get("metrics", {})
            if kind == "step" and event["step"] > self._logged:
                self._logged = event["step"]
                self._tracker.log_metrics(self.run_id, metrics, event["step"])
                words = [f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in _SHOWN if name in metrics]
                step.note("  ".join(words))
            step.advance(event["step"] - self._shown)
            self._shown = event["step"]

    def rollouts(self, folder: Path) -> None:
        """The pages of rollouts, and the same as tables."""
        files = sorted(folder.glob("step-*"))
        for file in files:
            self._tracker.log_file(self.run_id, file, ROLLOUTS)
        self._show([f"{ROLLOUTS}/{file.name}" for file in files if file.suffix == ".json"])

    def previews(self, folder: Path) -> None:
        """The page and the table of sample predictions."""
        self._tracker.log_file(self.run_id, folder, PREVIEWS)
        self._show([f"{PREVIEWS}/{TABLE}"])

    def _show(self, tables: list[str]) -> None:
        """Name the tables so that MLflow's page shows them; the tag holds all of a run."""
        self._tables += tables
        if self._tables:
            logged = json.dumps([{"path": path, "type": "table"} for path in self._tables])
            self._tracker.set_tags(self.run_id, {"mlflow.loggedArtifacts": logged})

    def model(
        self, name: str, folder: Path, tags: Mapping[str, str], metrics: Mapping[str, float], step: int, register: bool
    ) -> str | None:
        """The promoted model's lineage, and its metrics, which are the run's at `step`, too.

        With `register` it becomes a version, whose reference is returned.

        Raises:
            SightloomError: it is to be registered, and MLflow did not take it.
        """
        if register and not self._tracker.uri:
            raise SightloomError("register: true needs an MLflow store", "set tracking.uri")
        model_id, reference = "", None
        self._tracker.flush()
        if register:
            version = Registry(self._tracker.uri).register(name, folder, self.run_id, tags)
            model_id, reference = version.model_id, version.reference
        elif self._tracker.uri:
            try:
                model_id = record_export(self._tracker.uri, name, folder, self.run_id, tags)
            except SightloomError as error:  # the model is there all the same
                _log.warning("%s", error.message)
        self._tracker.log_metrics(self.run_id, metrics, step, model_id)
        return reference

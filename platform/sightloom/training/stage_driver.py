"""One stage of a curriculum, as the driver sees it: order it, examine its export, decide, promote."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sightloom import storage
from sightloom.config import canonical_json, digest, flatten
from sightloom.errors import SightloomError
from sightloom.model.load import VLM, load
from sightloom.progress import Progress, Step
from sightloom.tracking import Status, Tracker
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.crew import LazyCrew, store_of
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.export import verify
from sightloom.training.gates import Verdict, decide, missing_at_init
from sightloom.training.measure import Examiner
from sightloom.training.proof import the_outsider
from sightloom.training.rollout_page import PAGES
from sightloom.training.trainer import Event
from sightloom.training.worker import StageOrder

_log = logging.getLogger(__name__)
NUMERICS: Final = 1  # raised when the same file would give other numbers: finished stages are then run again


@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of a stage; `status` is promoted, or warned when a gate failed and the file says `gates: warn`."""

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


@dataclass(frozen=True, slots=True)
class Start:
    """A model that a stage may start from, with what it was measured to be."""

    folder: Path
    digest: str
    metrics: Mapping[str, float]


class StageDriver:
    """One stage: order it, examine its export, decide, promote."""

    def __init__(
        self,
        curriculum: Curriculum,
        stage: Stage,
        number: int,
        start: Start,
        out: Path,
        parts: tuple[tuple[str, str], ...],
        manifests: Mapping[str, Any],
        tracker: Tracker,
        parent: str,
    ) -> None:
        self._curriculum, self._stage, self._number, self._start = curriculum, stage, number, start
        self._parts, self._manifests, self._tracker, self._parent = parts, manifests, tracker, parent
        identity = {
            # gates decide about a stage, they do not change it
            "stage": stage.model_dump(mode="json", exclude={"promote_if", "evaluate"}),
            "seed": curriculum.run.seed,
            "start": start.digest,
            "manifests": [manifest.digest for manifest in manifests.values()],
            "heldout": curriculum.data.heldout,
            "numerics": NUMERICS,
        }
        self._digest = digest(identity)
        self._examined = digest({"evaluate": stage.evaluate, "max": curriculum.data.heldout_max})[:12]
        self._folder = out / f"{stage.name}-{self._digest[:12]}"
        self._store = store_of(curriculum, out)

    def finished(self) -> StageReport | None:
        """The report of a stage that is done, None while it is not."""
        promoted = str(self._folder / "promoted.json")
        if not storage.exists(promoted):
            return None
        kept = storage.read_json(promoted)
        return StageReport(**{**kept, "gates": tuple(kept["gates"])})

    def run(self, crew: LazyCrew, examiner: Examiner, progress: Progress) -> StageReport:
        """The stage's report; what is already on disk is not done again."""
        promoted = self._folder / "promoted.json"
        params = flatten(self._stage) | {"digest": self._digest}
        known = storage.exists(str(promoted))
        run_file = self._folder / "run.json"
        run_id = str(storage.read_json(str(run_file))["run_id"]) if known else ""
        if not known:
            run_id = tracked_run(self._tracker, run_file, self._stage.name, self._parent, params)
        status: Status = "FAILED"
        try:
            trained = self._trained(crew, run_id, progress)
            metrics, init = self._measured(trained, examiner)
            verdicts = decide(self._stage.promote_if, metrics, init)
            report = self._report(trained, metrics, verdicts, run_id)
            if not known:
                self._tracker.log_metrics(run_id, metrics, trained["steps"])
                self._tracker.log_metrics(self._parent, metrics, self._number)
                self._tracker.set_tags(run_id, {"status": report.status, "model_digest": report.digest})
                storage.write(str(promoted), canonical_json(asdict(report)))
                CheckpointStore(self._store).prune(self._folder.name, keep=0)
            status = "FINISHED"
            return report
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if not known:
                self._tracker.end_run(run_id, status)

    def _trained(self, crew: LazyCrew, run_id: str, progress: Progress) -> dict[str, Any]:
        done = self._folder / "trained.json"
        if storage.exists(str(done)):
            return dict(storage.read_json(str(done)))
        the_outsider()  # imports what it needs while the stage trains
        with progress.step(self._stage.name, total=self._stage.num_steps, unit="steps") as step:
            outcome = crew.get().run(self._order(), self._listener(step, run_id))
        if "failed" in outcome:
            raise SightloomError(f"stage '{self._stage.name}': {outcome['failed']}", outcome.get("hint", ""))
        self._show_rollouts(run_id)
        storage.write(str(done), canonical_json(outcome))
        return outcome

    def _show_rollouts(self, run_id: str) -> None:
        """Give the tracker the pages of rollouts, and name the tables so that MLflow's page shows them."""
        files = sorted((self._folder / PAGES).glob("step-*"))
        for file in files:
            self._tracker.log_file(run_id, file, "rollouts")
        tables = [{"path": f"rollouts/{file.name}", "type": "table"} for file in files if file.suffix == ".json"]
        if tables:
            self._tracker.set_tags(run_id, {"mlflow.loggedArtifacts": canonical_json(tables).decode()})

    def _measured(self, trained: dict[str, Any], examiner: Examiner) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of the export and of the start."""
        done = self._folder / f"measured-{self._examined}.json"
        if storage.exists(str(done)):
            kept = storage.read_json(str(done))
            return dict(kept["metrics"]), dict(kept["init"])
        vlm = verify(self._folder / "model")
        the_outsider().prove(self._folder / "model")
        metrics = dict(trained["metrics"])
        init = {**self._start.metrics, **trained["init"]}
        if self._stage.objective.kind not in ("align", "rm"):  # neither is a model that answers
            metrics |= examiner.ask(vlm, self._stage, self._folder / "evaluation")
            if missing_at_init(self._stage.promote_if, init):
                init = {**examiner.ask(self._loaded_start(), self._stage, None), **init}
        storage.write(str(done), canonical_json({"metrics": metrics, "init": init}))
        return metrics, init

    def _loaded_start(self) -> VLM:
        return load(str(self._start.folder), pixels=self._curriculum.model.pixels)

    def _report(
        self, trained: dict[str, Any], metrics: dict[str, float], verdicts: list[Verdict], run_id: str
    ) -> StageReport:
        failed = [verdict.text for verdict in verdicts if not verdict.passed]
        if failed and self._curriculum.gates == "stop":
            storage.write(str(self._folder / "held.json"), canonical_json({"failed": failed, "metrics": metrics}))
            raise SightloomError(
                f"stage '{self._stage.name}' is held, its gate failed: {'; '.join(failed)}",
                f"its model is kept in {self._folder / 'model'}; train it longer, or change promote_if",
            )
        return StageReport(
            self._stage.name,
            self._stage.objective.kind,
            trained["steps"],
            trained["samples"],
            round(trained["seconds"], 3),
            metrics,
            "warned" if failed else "promoted",
            str(self._folder / "model"),
            trained["digest"],
            run_id,
            tuple(verdict.text for verdict in verdicts),
        )

    def _order(self) -> StageOrder:
        thinking = self._stage.evaluate.thinking
        info = {
            "curriculum": self._curriculum.run.name,
            "stage": self._stage.name,
            "stage_digest": self._digest,
            "preset": self._curriculum.model.preset,
            "thinking": {"default": thinking},
            "parents": [self._start.digest],
            "manifests": [manifest.digest for manifest in self._manifests.values()],
        }
        return StageOrder(
            number=self._number,
            digest=self._digest,
            seed=self._curriculum.run.seed,
            stage=self._stage,
            parts=self._parts,
            heldout=self._curriculum.data.heldout,
            start=str(self._start.folder),
            folder=str(self._folder),
            store=self._store,
            checkpoint=self._curriculum.checkpoint,
            parallel=self._curriculum.parallel,
            peak_tflops=self._curriculum.tracking.peak_tflops,
            pixels=self._curriculum.model.pixels,
            info=info,
        )

    def _listener(self, step: Step, run_id: str) -> Any:
        shown = logged = saved = 0

        def hear(event: Event) -> None:
            nonlocal shown, logged, saved
            if event["kind"] == "unusable":
                self._tracker.set_tags(run_id, {f"checkpoint.unusable.{event['name']}": event["reason"]})
                return
            if event["kind"] == "checkpoint":
                if event["step"] > saved:  # a restarted group may save a step again
                    saved = event["step"]
                    self._tracker.log_metrics(run_id, event["metrics"], saved)
                if event["problem"]:
                    _log.warning("checkpoint of step %d left out: %s", event["step"], event["problem"])
                return
            if event["kind"] == "step" and event["step"] > logged:  # a restarted group says some steps twice
                logged = event["step"]
                metrics = event["metrics"]
                self._tracker.log_metrics(run_id, metrics, event["step"])
                words = [f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in _SHOWN if name in metrics]
                step.note("  ".join(words))
            step.advance(event["step"] - shown)
            shown = event["step"]

        return hear


_SHOWN: Final = ("train/loss", "train/caption_loss", "rollout/accuracy", "speed/samples_per_s")


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

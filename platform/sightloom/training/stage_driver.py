"""One stage of a curriculum, as the driver sees it: order it, examine its export, decide, promote."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from sightloom import storage
from sightloom.config import canonical_json, digest, flatten
from sightloom.errors import SightloomError
from sightloom.evaluation.intervals import Difference
from sightloom.evaluation.result import read_rows
from sightloom.model.load import VLM, load
from sightloom.progress import Progress
from sightloom.tracking import Status, Tracker
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.corpus import Corpus
from sightloom.training.crew import LazyCrew, store_of
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.export import verify
from sightloom.training.forgetting import differences
from sightloom.training.gates import Verdict, decide, missing_at_init, needs_pairs
from sightloom.training.measure import Examiner
from sightloom.training.notes import Notes
from sightloom.training.proof import the_outsider
from sightloom.training.rollout_page import PAGES
from sightloom.training.stage_report import StageReport, Start, tracked_run
from sightloom.training.worker import StageOrder

NUMERICS: Final = 1  # raised when the same file would give other numbers: finished stages are then run again
_ROWS: Final = "rows.jsonl"


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
            "stage": stage.model_dump(mode="json", exclude={"promote_if", "evaluate", "registers"}),
            "seed": curriculum.run.seed,
            "start": start.digest,
            "manifests": [manifest.digest for manifest in manifests.values()],
            "heldout": curriculum.data.heldout,
            "pixels": curriculum.model.pixels,
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
        tuples = {key: tuple(kept[key]) for key in ("gates", "trained_on")}
        return StageReport(**{**kept, **tuples})

    def run(self, crew: LazyCrew, examiner: Examiner, corpus: Callable[[], Corpus], progress: Progress) -> StageReport:
        """The stage's report; what is already on disk is not done again."""
        promoted = self._folder / "promoted.json"
        params = flatten(self._stage) | {"digest": self._digest}
        known = storage.exists(str(promoted))
        run_file = self._folder / "run.json"
        run_id = str(storage.read_json(str(run_file))["run_id"]) if known else ""
        if not known:
            run_id = tracked_run(self._tracker, run_file, self._stage.name, self._parent, params)
        notes = Notes(self._tracker, run_id)
        status: Status = "FAILED"
        try:
            drawn = corpus().drawn(self._stage) if not known else []
            notes.inputs(drawn, self._manifests)
            trained = self._trained(crew, notes, progress)
            if not known:
                notes.rollouts(self._folder / PAGES)
            metrics, init = self._measured(trained, examiner, notes)
            verdicts = decide(self._stage.promote_if, metrics, init, self._kept())
            report = self._report(trained, metrics, verdicts, run_id)
            if known:
                kept = self.finished()
                assert kept is not None
                report = replace(
                    report, init=kept.init, trained_on=kept.trained_on, dropped=kept.dropped, registered=kept.registered
                )
            else:
                self._tracker.log_metrics(run_id, self._cost(trained), trained["steps"])
                self._tracker.log_metrics(self._parent, metrics, self._number)
                self._tracker.set_tags(run_id, {"status": report.status, "model_digest": report.digest})
                report = replace(
                    report,
                    init=init,
                    trained_on=tuple(sorted({domain for entry in drawn for domain in entry.domains})),
                    dropped={entry.name: entry.dropped for entry in drawn if entry.dropped},
                    registered=self._noted_model(notes, report),
                )
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

    def _trained(self, crew: LazyCrew, notes: Notes, progress: Progress) -> dict[str, Any]:
        done = self._folder / "trained.json"
        if storage.exists(str(done)):
            return dict(storage.read_json(str(done)))
        the_outsider()  # imports what it needs while the stage trains
        with progress.step(self._stage.name, total=self._stage.num_steps, unit="steps") as step:
            outcome = crew.get().run(self._order(), lambda event: notes.hear(event, step))
        if "failed" in outcome:
            raise SightloomError(f"stage '{self._stage.name}': {outcome['failed']}", outcome.get("hint", ""))
        storage.write(str(done), canonical_json(outcome))
        return outcome

    def _measured(
        self, trained: dict[str, Any], examiner: Examiner, notes: Notes
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of the export and of the start."""
        paired = "-paired" if needs_pairs(self._stage.promote_if) else ""
        done = self._folder / f"measured-{self._examined}{paired}.json"
        if storage.exists(str(done)):
            kept = storage.read_json(str(done))
            return dict(kept["metrics"]), dict(kept["init"])
        vlm = verify(self._folder / "model")
        the_outsider().prove(self._folder / "model")
        metrics = dict(trained["metrics"])
        init = {**self._start.metrics, **trained["init"]}
        rules = self._stage.promote_if
        if self._stage.answers:
            metrics |= self._previewed(examiner, vlm, notes)
            if needs_pairs(rules) and not storage.exists(str(self._rows(self._start.folder.parent) / _ROWS)):
                init |= examiner.ask(self._loaded_start(), self._stage, self._rows(self._folder, "start-"))
            elif missing_at_init(rules, init):
                init = {**examiner.ask(self._loaded_start(), self._stage), **init}
        elif self._stage.objective.kind == "align":
            metrics |= self._previewed(examiner, vlm, notes)
        storage.write(str(done), canonical_json({"metrics": metrics, "init": init}))
        return metrics, init

    def _previewed(self, examiner: Examiner, vlm: VLM, notes: Notes) -> dict[str, float]:
        """Metrics of the export's answers, of which samples are noted with their pictures."""
        previews = self._folder / "previews"
        rows = (
            self._rows(self._folder) if self._stage.answers else None
        )  # a later stage's answers compare with no caption
        metrics = examiner.ask(vlm, self._stage, rows, previews)
        notes.previews(previews)
        return metrics

    def _rows(self, folder: Path, of: str = "") -> Path:
        """Where the answers to this stage's questions, asked in its way, lie in a stage's folder."""
        return folder / f"{of}evaluation-{self._examined}"

    def _kept(self) -> dict[str, Difference]:
        """By how much accuracy changed on the same questions; empty where the start was not asked them."""
        if not needs_pairs(self._stage.promote_if) or not self._stage.answers:
            return {}
        own = self._rows(self._folder, "start-")
        before = own if storage.exists(str(own / _ROWS)) else self._rows(self._start.folder.parent)
        return differences(read_rows(self._rows(self._folder)), read_rows(before))

    def _cost(self, trained: dict[str, Any]) -> dict[str, float]:
        """GPU-hours and their price, where there are GPUs and a price."""
        hours = self._curriculum.ray.gpus * trained["seconds"] / 3600
        price = self._curriculum.tracking.usd_per_gpu_hour
        if not hours:
            return {}
        return {"cost/gpu_hours": hours} | ({} if price is None else {"cost/usd": hours * price})

    def _noted_model(self, notes: Notes, report: StageReport) -> str | None:
        tags = {
            "sightloom.digest": report.digest,
            "sightloom.parent": self._start.digest,
            "sightloom.stage": self._stage.name,
            "sightloom.folder": report.model_dir,
            "sightloom.status": report.status,
            "sightloom.manifests": ",".join(manifest.digest for manifest in self._manifests.values()),
        }
        run = self._curriculum.run.name
        registers = self._stage.registers
        name = run if registers else f"{run}-{self._stage.name}"
        folder = self._folder / "model"
        return notes.model(name, folder, tags, report.metrics, report.steps, registers)

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

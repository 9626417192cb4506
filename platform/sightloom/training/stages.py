"""The driver of a curriculum: stage after stage, each in a folder named by the digest of all that it depends on.

OUT/start-<digest>/         the model that the first stage starts from, when it is built from scratch
OUT/index-<digest>.npz      token and patch counts of a manifest
OUT/<stage>-<digest12>/     model/ (the export), rollouts/, evaluation/, trained.json, measured.json, promoted.json
OUT/ray/                    checkpoints of the running stage
`promoted.json` is written last and means done; a second run of the same file does nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray

from sightloom import storage
from sightloom.config import canonical_json, digest, flatten
from sightloom.data.shards.manifest import read_manifest
from sightloom.errors import SightloomError, UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.load import fetch, load
from sightloom.model.scratch import build_folder
from sightloom.progress import Progress, Step
from sightloom.tracking import Status, Tracker
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.export import MANIFEST, model_digest, seal, verify
from sightloom.training.gates import Verdict, decide, missing_at_init
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.inprocess import InProcess
from sightloom.training.measure import Examiner
from sightloom.training.trainer import Crew, Event
from sightloom.training.worker import StageOrder

NUMERICS: Final = 1  # raised when the same file would give other numbers: finished stages are then run again
_TOKENIZER_SAMPLES: Final = 20_000
_OBJECT_STORE_BYTES: Final = 200_000_000


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
class TrainResult:
    """A finished curriculum; `model_dir` is the last stage's export."""

    run_id: str
    model_dir: str
    stages: tuple[StageReport, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `sightloom train --json` prints."""
        return {
            "run_id": self.run_id,
            "model_dir": self.model_dir,
            "stages": [asdict(stage) for stage in self.stages],
        }


@dataclass(frozen=True, slots=True)
class _Start:
    """A model that a stage may start from, with what it was measured to be."""

    folder: Path
    digest: str
    metrics: Mapping[str, float]


def train(
    curriculum: Curriculum, out: str, progress: Progress, tracker: Tracker, ray_address: str = "local"
) -> TrainResult:
    """Run a curriculum, or what of it is not yet done.

    Args:
        out: a folder that driver and workers share; it also holds what a later run goes on from.
        ray_address: used when no Ray is running in this process; `local` starts one for the time of the run.

    Raises:
        UserMistake: the manifest, an expression or the folder is wrong; nothing was trained.
        SightloomError: the workers failed, or a gate was not passed and the file says `gates: stop`.
    """
    folder = Path(out).absolute()
    storage.ensure_writable(str(folder), free_bytes=200_000_000)
    manifests = _manifests(curriculum)
    run_id = _tracked_run(tracker, folder / "run.json", curriculum.run.name, None, flatten(curriculum))
    for name, manifest in manifests.items():
        tracker.log_input(run_id, name, manifest.digest, "training")
    status: Status = "FAILED"
    with _crew(curriculum, folder, ray_address) as crew:
        try:
            result = _run(curriculum, folder, manifests, crew, progress, tracker, run_id)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.end_run(run_id, status)
    return result


def _run(
    curriculum: Curriculum,
    folder: Path,
    manifests: Mapping[str, Any],
    crew: "_LazyCrew",
    progress: Progress,
    tracker: Tracker,
    run_id: str,
) -> TrainResult:
    starts: dict[str, _Start] = {}
    current = _first_start(curriculum, folder, manifests, crew, progress)
    encoder = Encoder(load(str(current.folder)).processor)
    parts = tuple(
        (uri, str(index_for(manifest, current.folder, encoder, folder, progress)))
        for uri, manifest in manifests.items()
    )
    examiner = Examiner(curriculum.data, curriculum.run.seed, progress)
    reports: list[StageReport] = []
    for number, stage in enumerate(curriculum.stages):
        if stage.init is not None:
            current = starts[stage.init] if stage.init in starts else _given(stage.init)
        driver = _StageDriver(curriculum, stage, number, current, folder, parts, manifests, tracker, run_id)
        report = driver.run(crew, examiner, progress)
        reports.append(report)
        current = starts[stage.name] = _Start(Path(report.model_dir), report.digest, report.metrics)
    return TrainResult(run_id, str(current.folder), tuple(reports))


class _StageDriver:
    """One stage: order it, examine its export, decide, promote."""

    def __init__(
        self,
        curriculum: Curriculum,
        stage: Stage,
        number: int,
        start: _Start,
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

    def run(self, crew: "_LazyCrew", examiner: Examiner, progress: Progress) -> StageReport:
        """The stage's report; what is already on disk is not done again."""
        promoted = self._folder / "promoted.json"
        params = flatten(self._stage) | {"digest": self._digest}
        known = storage.exists(str(promoted))
        run_file = self._folder / "run.json"
        run_id = str(storage.read_json(str(run_file))["run_id"]) if known else ""
        if not known:
            run_id = _tracked_run(self._tracker, run_file, self._stage.name, self._parent, params)
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
            status = "FINISHED"
            return report
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if not known:
                self._tracker.end_run(run_id, status)

    def _trained(self, crew: "_LazyCrew", run_id: str, progress: Progress) -> dict[str, Any]:
        done = self._folder / "trained.json"
        if storage.exists(str(done)):
            return dict(storage.read_json(str(done)))
        with progress.step(self._stage.name, total=self._stage.steps, unit="steps") as step:
            outcome = crew.get().run(self._order(), self._listener(step, run_id))
        if "failed" in outcome:
            raise SightloomError(f"stage '{self._stage.name}': {outcome['failed']}", outcome.get("hint", ""))
        storage.write(str(done), canonical_json(outcome))
        return outcome

    def _measured(self, trained: dict[str, Any], examiner: Examiner) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of the export and of the start."""
        done = self._folder / f"measured-{self._examined}.json"
        if storage.exists(str(done)):
            kept = storage.read_json(str(done))
            return dict(kept["metrics"]), dict(kept["init"])
        vlm = verify(self._folder / "model")
        metrics = dict(trained["metrics"])
        init = {**self._start.metrics, **trained["init"]}
        if self._stage.objective.kind != "align":
            metrics |= examiner.ask(vlm, self._stage, self._folder / "evaluation")
            if missing_at_init(self._stage.promote_if, init):
                init = {**examiner.ask(load(str(self._start.folder)), self._stage, None), **init}
        storage.write(str(done), canonical_json({"metrics": metrics, "init": init}))
        return metrics, init

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
            checkpoint=self._curriculum.checkpoint,
            info=info,
        )

    def _listener(self, step: Step, run_id: str) -> Any:
        shown = 0

        def hear(event: Event) -> None:
            nonlocal shown
            if event["kind"] == "step":
                metrics = event["metrics"]
                self._tracker.log_metrics(run_id, metrics, event["step"])
                words = [f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in _SHOWN if name in metrics]
                step.note("  ".join(words))
            step.advance(event["step"] - shown)
            shown = event["step"]

        return hear


_SHOWN: Final = ("train/loss", "train/caption_loss", "rollout/accuracy", "speed/samples_per_s")


class _LazyCrew:
    """The crew, hired when the first stage needs it: a run with nothing to do starts no Ray."""

    def __init__(self, curriculum: Curriculum, folder: Path, ray_address: str) -> None:
        self._curriculum, self._folder, self._address = curriculum, folder, ray_address
        self._crew: Crew | InProcess | None = None
        self._owns_ray = False

    def get(self) -> Crew | InProcess:
        if self._crew is None:
            if self._curriculum.ray.workers == 0:
                self._crew = InProcess(self._folder / "checkpoints")
                return self._crew
            if not ray.is_initialized():
                options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
                if self._address == "local":
                    options["num_cpus"] = max(self._curriculum.ray.workers, 2)
                else:
                    options = {}
                ray.init(address=self._address, log_to_driver=False, **options)
                self._owns_ray = True
            options_ = self._curriculum.ray
            crew = Crew(self._curriculum.run.name, self._folder / "ray", options_, self._curriculum.checkpoint)
            crew.start()
            self._crew = crew
        return self._crew

    def close(self) -> None:
        if self._crew is not None:
            self._crew.dismiss()
        if self._owns_ray:
            ray.shutdown()


@contextlib.contextmanager
def _crew(curriculum: Curriculum, folder: Path, ray_address: str) -> Iterator[_LazyCrew]:
    crew = _LazyCrew(curriculum, folder, ray_address)
    try:
        yield crew
    finally:
        crew.close()


def _manifests(curriculum: Curriculum) -> dict[str, Any]:
    """Every manifest that the run reads, its own first."""
    uris = [curriculum.data.manifest]
    uris += [source.manifest for stage in curriculum.stages for source in stage.mix.values() if source.manifest]
    return {uri: read_manifest(uri) for uri in dict.fromkeys(uris)}


def _first_start(
    curriculum: Curriculum, out: Path, manifests: Mapping[str, Any], crew: _LazyCrew, progress: Progress
) -> _Start:
    model, seed = curriculum.model, curriculum.run.seed
    if model.pretrained is not None:
        return _given(model.pretrained)
    assert model.preset is not None  # the schema demands one of the two
    manifest = next(iter(manifests.values()))
    name = digest({"preset": model.preset, "seed": seed, "manifest": manifest.digest, "numerics": NUMERICS})
    folder = out / f"start-{name[:12]}"
    if not (folder / MANIFEST).is_file():
        crew.get()  # the workers import torch while the tokenizer is trained
        with progress.step("tokenizer and fresh model"):
            build_folder(model.preset, corpus_texts(manifest, seed, _TOKENIZER_SAMPLES), folder, seed)
            seal(folder, {"preset": model.preset, "thinking": {"default": None}})
    return _Start(folder, model_digest(folder), {})


def _given(source: str) -> _Start:
    """A model from elsewhere; without a manifest of ours its files' digests stand for it."""
    folder = fetch(source)
    if folder is None:
        raise UserMistake(f"'{source}' is a hub id; download it and give the folder")
    if (folder / MANIFEST).is_file():
        return _Start(folder, model_digest(folder), {})
    return _Start(folder, digest({file.name: storage.sha256_file(file) for file in sorted(folder.iterdir())}), {})


def _tracked_run(tracker: Tracker, file: Path, name: str, parent: str | None, params: Mapping[str, str]) -> str:
    """The run kept in `file`, set back to running, or a new one."""
    if file.is_file():
        kept = storage.read_json(str(file))
        if kept["uri"] == tracker.uri:
            tracker.resume_run(kept["run_id"])
            return str(kept["run_id"])
    run_id = tracker.start_run(name, parent, {}, params)
    storage.write(str(file), canonical_json({"run_id": run_id, "uri": tracker.uri}))
    return run_id

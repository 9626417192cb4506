"""The driver of a curriculum: stage after stage, each in a folder named by the digest of all that it depends on.

OUT/start-<digest>/         the model that the first stage starts from, when it is built from scratch
OUT/index-<digest>.npz      token and patch counts of a manifest
OUT/<stage>-<digest12>/     model/ (the export), consumed/ (uids by step), rollouts/, evaluation/, trained.json,
                            measured.json, promoted.json
OUT/checkpoints/<run>/      checkpoints of the running stage, unless the file gives checkpoint.uri
`promoted.json` is written last and means done; a second run of the same file does nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sightloom import storage
from sightloom.config import digest, flatten
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Encoder
from sightloom.model.load import fetch, processor_of
from sightloom.model.scratch import build_folder
from sightloom.progress import Progress
from sightloom.tracking import NullTracker, Status, Tracker
from sightloom.training.crew import LazyCrew
from sightloom.training.curriculum import Curriculum
from sightloom.training.export import MANIFEST, model_digest, seal
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.measure import Examiner
from sightloom.training.shard_check import check_shards
from sightloom.training.stage_driver import NUMERICS, StageDriver, StageReport, Start, tracked_run

_TOKENIZER_SAMPLES: Final = 20_000


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
class PlannedStage:
    """One stage before it is run: at most `max_tokens` pass through it; `status` is `to do` until it is finished."""

    name: str
    stage: str
    objective: str
    steps: int
    max_tokens: int
    status: str


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
    run_id = tracked_run(tracker, folder / "run.json", curriculum.run.name, None, flatten(curriculum))
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


def plan(curriculum: Curriculum, out: str) -> tuple[PlannedStage, ...]:
    """What a run would do, without doing any of it: no Ray, no worker, no file.

    Raises:
        UserMistake: the manifest or a model to start from is not there.
    """
    folder = Path(out).absolute()
    manifests = _manifests(curriculum)
    starts: dict[str, Start] = {}
    current: Start | None = None
    if curriculum.model.pretrained is not None:
        current = _given(curriculum.model.pretrained)
    else:
        fresh = _fresh_folder(curriculum, folder, next(iter(manifests.values())).digest)
        current = Start(fresh, model_digest(fresh), {}) if (fresh / MANIFEST).is_file() else None
    planned = []
    for number, stage in enumerate(curriculum.stages):
        if stage.init is not None:
            named = any(stage.init == earlier.name for earlier in curriculum.stages[:number])
            current = starts.get(stage.init) if named else _given(stage.init)
        report = None
        if current is not None:
            driver = StageDriver(curriculum, stage, number, current, folder, (), manifests, NullTracker(), "")
            report = driver.finished()
        current = None
        if report is not None:
            current = starts[stage.name] = Start(Path(report.model_dir), report.digest, report.metrics)
        tokens = stage.num_steps * stage.batch.packs * stage.batch.max_tokens
        status = "to do" if report is None else report.status
        planned.append(PlannedStage(stage.name, stage.stage, stage.objective.kind, stage.num_steps, tokens, status))
    return tuple(planned)


def _run(
    curriculum: Curriculum,
    folder: Path,
    manifests: Mapping[str, Any],
    crew: LazyCrew,
    progress: Progress,
    tracker: Tracker,
    run_id: str,
) -> TrainResult:
    for manifest in manifests.values():
        check_shards(manifest, curriculum.data.checksums, folder, progress)
    starts: dict[str, Start] = {}
    current = _first_start(curriculum, folder, manifests, crew, progress)
    encoder = Encoder(processor_of(current.folder, curriculum.model.pixels))
    parts = tuple(
        (uri, str(index_for(manifest, current.folder, encoder, folder, progress)))
        for uri, manifest in manifests.items()
    )
    examiner = Examiner(curriculum.data, curriculum.run.seed, progress)
    reports: list[StageReport] = []
    for number, stage in enumerate(curriculum.stages):
        if stage.init is not None:
            current = starts[stage.init] if stage.init in starts else _given(stage.init)
        driver = StageDriver(curriculum, stage, number, current, folder, parts, manifests, tracker, run_id)
        report = driver.run(crew, examiner, progress)
        reports.append(report)
        current = starts[stage.name] = Start(Path(report.model_dir), report.digest, report.metrics)
    return TrainResult(run_id, str(current.folder), tuple(reports))


@contextlib.contextmanager
def _crew(curriculum: Curriculum, folder: Path, ray_address: str) -> Iterator[LazyCrew]:
    crew = LazyCrew(curriculum, folder, ray_address)
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
    curriculum: Curriculum, out: Path, manifests: Mapping[str, Any], crew: LazyCrew, progress: Progress
) -> Start:
    model, seed = curriculum.model, curriculum.run.seed
    if model.pretrained is not None:
        return _given(model.pretrained)
    assert model.preset is not None  # the schema demands one of the two
    manifest = next(iter(manifests.values()))
    folder = _fresh_folder(curriculum, out, manifest.digest)
    if not (folder / MANIFEST).is_file():
        crew.get()  # the workers import torch while the tokenizer is trained
        with progress.step("tokenizer and fresh model"):
            build_folder(model.preset, corpus_texts(manifest, seed, _TOKENIZER_SAMPLES), folder, seed)
            seal(folder, {"preset": model.preset, "thinking": {"default": None}})
    return Start(folder, model_digest(folder), {})


def _fresh_folder(curriculum: Curriculum, out: Path, manifest_digest: str) -> Path:
    """Where the untrained model of a preset lies, or will lie."""
    identity = {"preset": curriculum.model.preset, "seed": curriculum.run.seed, "manifest": manifest_digest}
    return out / f"start-{digest({**identity, 'numerics': NUMERICS})[:12]}"


def _given(source: str) -> Start:
    """A model from elsewhere; without a manifest of ours its files' digests stand for it."""
    folder = fetch(source)
    if (folder / MANIFEST).is_file():
        return Start(folder, model_digest(folder), {})
    return Start(folder, digest({file.name: storage.sha256_file(file) for file in sorted(folder.iterdir())}), {})

"""The driver of a curriculum: stage after stage, each in a folder named by the digest of all that it depends on.

OUT/start-<digest>/         the model that the first stage starts from, when it is built from scratch
OUT/index-<digest>.npz      token and patch counts of a manifest
OUT/<stage>-<digest12>/     model/ (the export), consumed/ (uids by step), rollouts/, evaluation-*/, previews/,
                            trained.json, measured-*.json, promoted.json
OUT/checkpoints/<run>/      checkpoints of the running stage, unless the file gives checkpoint.uri
`promoted.json` is written last and means done; a second run of the same file does nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from sightloom import storage
from sightloom.config import canonical_json, digest, flatten, nearest
from sightloom.data.shards.manifest import read_manifest
from sightloom.errors import UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.load import fetch, processor_of
from sightloom.model.scratch import build_folder
from sightloom.progress import Progress
from sightloom.tracking import Status, Tracker
from sightloom.training.corpus import Corpus
from sightloom.training.crew import LazyCrew
from sightloom.training.curriculum import Curriculum
from sightloom.training.epochs import with_steps
from sightloom.training.export import MANIFEST, model_digest, seal
from sightloom.training.forgetting import Trained, measured_domains, trained
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.measure import Examiner
from sightloom.training.shard_check import check_shards
from sightloom.training.stage_driver import NUMERICS, StageDriver
from sightloom.training.stage_report import StageReport, Start, tracked_run

_TOKENIZER_SAMPLES: Final = 20_000


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished curriculum; `model_dir` is the last stage's export."""

    run_id: str
    model_dir: str
    stages: tuple[StageReport, ...]

    def matrix(self) -> tuple[Trained, ...]:
        """What each answering stage trained on, and each domain's accuracy afterwards and its change."""
        domains = sorted({name for stage in self.stages for name in measured_domains(stage.metrics)})
        rows = (trained(stage.name, stage.trained_on, stage.metrics, stage.init, domains) for stage in self.stages)
        return tuple(row for row in rows if row.accuracy)

    def to_json(self) -> dict[str, Any]:
        """The object that `sightloom train --json` prints."""
        return {
            "run_id": self.run_id,
            "model_dir": self.model_dir,
            "stages": [asdict(stage) for stage in self.stages],
            "matrix": [asdict(row) for row in self.matrix()],
        }


def train(
    curriculum: Curriculum,
    out: str,
    progress: Progress,
    tracker: Tracker,
    ray_address: str = "local",
    only: str | None = None,
) -> TrainResult:
    """Run a curriculum, or what of it is not yet done.

    Args:
        out: a folder that driver and workers share; it also holds what a later run goes on from.
        only: the name of the one stage that may be run; those before it that it builds on must be done.
        ray_address: used when no Ray is running in this process; `local` starts one for the time of the run.

    Raises:
        UserMistake: the manifest, an expression or the folder is wrong; nothing was trained.
        SightloomError: the workers failed, or a gate was not passed and the file says `gates: stop`.
    """
    if only is not None and only not in (names := [stage.name for stage in curriculum.stages]):
        raise UserMistake(f"there is no stage '{only}'{nearest(only, names)}")
    folder = Path(out).absolute()
    storage.ensure_writable(str(folder), free_bytes=200_000_000)
    manifests = manifests_of(curriculum)
    run_id = tracked_run(tracker, folder / "run.json", curriculum.run.name, None, flatten(curriculum))
    for name, manifest in manifests.items():
        tracker.log_input(run_id, name, manifest.digest, "training", {"rows": str(manifest.totals.samples)})
    status: Status = "FAILED"
    with _crew(curriculum, folder, ray_address) as crew:
        try:
            result = _run(curriculum, folder, manifests, crew, progress, tracker, run_id, only)
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
    crew: LazyCrew,
    progress: Progress,
    tracker: Tracker,
    run_id: str,
    only: str | None,
) -> TrainResult:
    for manifest in manifests.values():
        check_shards(manifest, curriculum.data.checksums, folder, progress)
    starts: dict[str, Start] = {}
    current: Start | None = _first_start(curriculum, folder, manifests, crew, progress)
    assert current is not None
    encoder = Encoder(processor_of(current.folder, curriculum.model.pixels))
    parts = tuple(
        (uri, str(index_for(manifest, current.folder, encoder, folder, progress)))
        for uri, manifest in manifests.items()
    )
    examiner = Examiner(curriculum.data, curriculum.run.seed, progress)
    reports: list[StageReport] = []
    corpus = cache(lambda: Corpus(parts, curriculum.data.heldout))
    for number, planned in enumerate(curriculum.stages):
        if planned.init is not None:
            named = any(planned.init == earlier.name for earlier in curriculum.stages[:number])
            current = starts.get(planned.init) if named else given(planned.init)
        if current is None:
            if only == planned.name:
                raise UserMistake(f"stage '{only}' builds on one that is not done", "run that one first")
            continue
        stage = planned if planned.epochs is None else with_steps(planned, corpus(), curriculum.run.seed)
        driver = StageDriver(curriculum, stage, number, current, folder, parts, manifests, tracker, run_id)
        mine = only is None or only == stage.name
        report = driver.run(crew, examiner, corpus, progress) if mine else driver.finished()
        current = None
        if report is not None:
            reports.append(report)
            current = starts[stage.name] = Start(Path(report.model_dir), report.digest, report.metrics)
        if only == stage.name:
            break
    result = TrainResult(run_id, reports[-1].model_dir, tuple(reports))
    _note_forgetting(result, folder, tracker)
    return result


def _note_forgetting(result: TrainResult, folder: Path, tracker: Tracker) -> None:
    """Leave the matrix of what each stage trained on and how each domain measured afterwards beside the parent run."""
    file = folder / "trained-on-measured-on.json"
    rows = canonical_json([asdict(row) for row in result.matrix()])
    if not file.is_file() or file.read_bytes() != rows:
        storage.write(str(file), rows)
        tracker.log_file(result.run_id, file)


@contextlib.contextmanager
def _crew(curriculum: Curriculum, folder: Path, ray_address: str) -> Iterator[LazyCrew]:
    crew = LazyCrew(curriculum, folder, ray_address)
    try:
        yield crew
    finally:
        crew.close()


def manifests_of(curriculum: Curriculum) -> dict[str, Any]:
    """Every manifest that the run reads, its own first."""
    uris = [curriculum.data.manifest]
    uris += [source.manifest for stage in curriculum.stages for source in stage.mix.values() if source.manifest]
    return {uri: read_manifest(uri) for uri in dict.fromkeys(uris)}


def _first_start(
    curriculum: Curriculum, out: Path, manifests: Mapping[str, Any], crew: LazyCrew, progress: Progress
) -> Start:
    model, seed = curriculum.model, curriculum.run.seed
    if model.pretrained is not None:
        return given(model.pretrained)
    assert model.preset is not None  # the schema demands one of the two
    manifest = next(iter(manifests.values()))
    folder = fresh_folder(curriculum, out, manifest.digest)
    if not (folder / MANIFEST).is_file():
        crew.get()  # the workers import torch while the tokenizer is trained
        with progress.step("tokenizer and fresh model"):
            build_folder(model.preset, corpus_texts(manifest, seed, _TOKENIZER_SAMPLES), folder, seed)
            seal(folder, {"preset": model.preset, "thinking": {"default": None}})
    return Start(folder, model_digest(folder), {})


def fresh_folder(curriculum: Curriculum, out: Path, manifest_digest: str) -> Path:
    """Where the untrained model of a preset lies, or will lie."""
    identity = {"preset": curriculum.model.preset, "seed": curriculum.run.seed, "manifest": manifest_digest}
    return out / f"start-{digest({**identity, 'numerics': NUMERICS})[:12]}"


def given(source: str) -> Start:
    """A model from elsewhere; without a manifest of ours its files' digests stand for it."""
    folder = fetch(source)
    if (folder / MANIFEST).is_file():
        return Start(folder, model_digest(folder), {})
    return Start(folder, digest({file.name: storage.sha256_file(file) for file in sorted(folder.iterdir())}), {})

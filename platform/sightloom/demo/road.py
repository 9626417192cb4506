"""The demo's road: corpus, filter network, curation, four training stages, gate, promotion, endpoint, answers."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sightloom import config, runtime
from sightloom.data.curation import curate
from sightloom.data.fit import fit_scorer
from sightloom.data.recipe import Recipe
from sightloom.demo.asking import ask, choose
from sightloom.demo.corpus import CorpusInfo, read_info, write_corpus
from sightloom.demo.measure import measure_curation
from sightloom.demo.settings import Settings, pipeline_file, settings
from sightloom.demo.steps import Result, Steps
from sightloom.demo.tables import stage_figures, version_figures
from sightloom.errors import GateNotPassed
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.suites import Suite, read_suite
from sightloom.progress import Progress
from sightloom.promotion import release
from sightloom.promotion.asking import Exam, InProcess
from sightloom.promotion.events import Who
from sightloom.promotion.evidence import gather
from sightloom.promotion.ledger import Ledger
from sightloom.registry import Registry
from sightloom.registry.once import register_once
from sightloom.serving import deploy
from sightloom.serving.ports import check_port
from sightloom.tracking import MlflowTracker
from sightloom.training.curriculum import Curriculum
from sightloom.training.stages import train

MODEL: Final = "sightloom"
_NAMES: Final = ("corpus", "filter", "curate", "train", "release", "serve")


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo found. `table`: for each stage, the share of right answers per domain with intervals."""

    seconds: float
    seed: int
    quick: bool
    curation: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]
    domains: Mapping[str, Any]
    version: Mapping[str, Any]
    answers: tuple[Mapping[str, Any], ...]
    table: tuple[Mapping[str, Any], ...]
    paths: Mapping[str, str]
    address: str

    def to_json(self) -> dict[str, Any]:
        """The object that `sightloom demo --json` prints."""
        names = ("seconds", "seed", "quick", "curation", "stages", "domains", "version", "answers", "paths")
        return {name: getattr(self, name) for name in names}

    @property
    def next_commands(self) -> tuple[str, ...]:
        """What to try now."""
        return (
            f"sightloom serve {MODEL}:{self.version['version']} --store {self.paths['mlflow']}",
            f"sightloom evaluate pipelines/suites/heldout-thinking.yaml --checkpoint {self.paths['model']} "
            f"--manifest {self.paths['manifest']}",
            "sightloom curate pipelines/recipes/photos.yaml --set out=out/photos",
        )


@contextlib.contextmanager
def run_demo(out: Path, seed: int, quick: bool, port: int, progress: Progress) -> Iterator[Demo]:
    """Walk the road, or the rest of it; the endpoint lives as long as the `with` block.

    Args:
        out: the folder of everything; a second call with it goes on after the last finished step.
        seed: of corpus, weights and order.
        quick: tiny numbers, whose figures mean nothing.
        port: of the endpoint, on loopback.
        progress: one display for the whole road.

    Raises:
        UserMistake: `out` cannot be written or holds another demo, or the port is in use; found before any work.
    """
    numbers = settings(seed, quick)
    check_port("127.0.0.1", port)
    road = _Road(out.absolute(), numbers, progress)
    with _ray() as owned:
        with progress.step("demo", total=len(_NAMES), unit="steps") as whole:
            done: dict[str, Result] = {}
            for name, work in road.steps(done):
                whole.note(name)
                done[name] = road.finished.run(name, work)
                whole.advance()
            address, answers = road.serve(done["release"], done["curate"], port)
            whole.advance()
        try:
            yield road.summary(done, address, answers)
        finally:
            deploy.shutdown(ray_ends=owned)


@contextlib.contextmanager
def _ray() -> Iterator[bool]:
    """A Ray for the time of the demo; one that is there already stays. Yields whether it ends with the demo."""
    owned = runtime.connect(runtime.LOCAL)
    try:
        yield owned
    finally:
        if owned:
            runtime.disconnect()


class _Road:
    """The steps with their folders."""

    def __init__(self, out: Path, numbers: Settings, progress: Progress) -> None:
        self._out, self._numbers, self._progress = out, numbers, progress
        self.finished = Steps.open(out, asdict(numbers))
        self._store = f"sqlite:///{out / 'mlflow.db'}"

    def steps(self, done: dict[str, Result]) -> Iterator[tuple[str, Any]]:
        """Each step's name and work, in order; later ones read what earlier ones left in `done`."""
        yield "corpus", self._corpus
        yield "filter", self._filter
        yield "curate", self._curate
        yield "train", lambda: self._train(done["curate"]["manifest"])
        yield "release", lambda: self._release(done["train"], done["curate"]["manifest"])

    def _corpus(self) -> Result:
        numbers = self._numbers
        info = write_corpus(
            self._out / "corpus",
            numbers.seed,
            numbers.num_pairs,
            numbers.num_pictures,
            numbers.num_trusted,
            self._progress,
        )
        return asdict(info)

    @property
    def _info(self) -> CorpusInfo:
        return read_info(self._out / "corpus")

    def _recipe(self) -> Recipe:
        """The demo's recipe with this demo's addresses."""
        out, info = self._out, self._info
        sets = [
            f"out={out / 'data'}",
            f"seed={self._numbers.seed}",
            f"source.0.uri={info.pairs}",
            f"source.1.uri={info.questions}",
            f"score.clip.0.model=local-dir:{out / 'filter'}",
            f"fit.trusted.0.uri={info.trusted}",
            f"fit.out={out / 'filter'}",
        ]
        if self._numbers.quick:
            sets.append(f"fit.steps={self._numbers.filter_steps}")
        return config.load(Recipe, pipeline_file("recipes/demo.yaml"), sets)

    def _filter(self) -> Result:
        recipe = self._recipe()
        assert recipe.fit is not None  # the demo's own file has it
        return asdict(fit_scorer(recipe.fit, recipe.seed, self._progress))

    def _curate(self) -> Result:
        recipe = self._recipe()
        result = curate(recipe, self._progress, MlflowTracker(self._store, "curation"))
        column = f"clip_{recipe.score.clip[0].name}"
        found = measure_curation(recipe.out, result.manifest, Path(self._info.truth), column)
        return {**result.to_json(), "report": result.report, "truth": found}

    def _train(self, manifest: str) -> Result:
        curriculum = self._curriculum(manifest)
        tracker = MlflowTracker(self._store, curriculum.tracking.experiment)
        return train(curriculum, str(self._out / "train"), self._progress, tracker).to_json()

    def _curriculum(self, manifest: str) -> Curriculum:
        path = pipeline_file("curricula/nano.yaml")
        sets = [f"data.manifest={manifest}", f"run.seed={self._numbers.seed}", "gates=warn"]
        curriculum = config.load(Curriculum, path, sets)
        share = self._numbers.step_share
        if share < 1:
            for index, stage in enumerate(curriculum.stages):
                sets.append(f"stages.{index}.steps={max(2, round(stage.num_steps * share))}")
                sets.append(f"stages.{index}.evaluate.per_domain={self._numbers.eval_per_domain}")
            curriculum = config.load(Curriculum, path, sets)
        return curriculum

    def _release(self, trained: Result, manifest: str) -> Result:
        """Register the last stage's model, ask the gate, and promote it if it passes."""
        rules = config.load(GateRules, pipeline_file("gates/demo.yaml"))
        suite = config.load(Suite, pipeline_file("gates/demo.yaml").parent / rules.suites)
        examples = read_suite(suite, manifest)
        registry, ledger = Registry(self._store), Ledger(self._store)
        tags = {"sightloom.preset": "nano", "sightloom.data": manifest}
        with self._progress.step("register"):
            version = register_once(registry, MODEL, Path(trained["model_dir"]), trained["stages"][-1]["run_id"], tags)
        state = ledger.read().model(MODEL)
        tracker = MlflowTracker(self._store, "gates")
        cache = self._out / "cache"
        exam, here = Exam(rules, suite, examples), InProcess(registry, cache)
        evidence = gather(registry, state, version, exam, here, tracker, self._progress)
        with contextlib.suppress(GateNotPassed):
            release.promote(registry, ledger, version, evidence, Who("demo", "the demo's gate"))
        return {
            "name": MODEL,
            "version": version.version,
            "digest": version.digest,
            "champion": ledger.read().model(MODEL).champion == version.version,
            "gate": {"outcome": evidence.decision.outcome, "reasons": list(evidence.decision.reasons)},
            "run_id": evidence.run_id,
            "result": evidence.candidate.to_json(),
        }

    def serve(self, released: Result, curated: Result, port: int) -> tuple[str, list[dict[str, Any]]]:
        """Serve the version and ask it one question a domain."""
        registry = Registry(self._store)
        version = registry.resolve(f"{MODEL}:{released['version']}")
        folder = registry.materialize(version, self._out / "cache")
        with self._progress.step("serve"):
            deployment = deploy.deploy(folder, MODEL, str(version.version), port)
        suite = config.load(Suite, pipeline_file("suites/heldout-thinking.yaml"))
        examples = choose(read_suite(suite, curated["manifest"]))
        with self._progress.step("ask", total=len(examples), unit="questions") as step:
            answers = ask(deployment.address, MODEL, examples, self._out / "answers")
            step.advance(len(examples))
        return deployment.address, [answer.to_json() for answer in answers]

    def summary(self, done: Mapping[str, Result], address: str, answers: list[dict[str, Any]]) -> Demo:
        """What was found, in the conventions of `--json`."""
        curated, trained, released = done["curate"], done["train"], done["release"]
        truth = curated["truth"]
        return Demo(
            seconds=round(sum(result["seconds"] for result in done.values()), 1),
            seed=self._numbers.seed,
            quick=self._numbers.quick,
            curation={**truth, "rows_in": curated["rows_in"], "kept": curated["kept"]},
            stages=tuple(trained["stages"]),
            domains=released["result"]["domains"],
            version=version_figures(released),
            answers=tuple(answers),
            table=tuple(stage_figures(trained["stages"])),
            paths={
                "report": curated["report"],
                "manifest": curated["manifest"],
                "mlflow": self._store,
                "model": trained["model_dir"],
            },
            address=address,
        )

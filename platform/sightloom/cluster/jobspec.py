"""A job: one typed file in `jobs/` that says what runs, with what, and where it may (serving.md §12)."""

import contextlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, model_validator

from sightloom.cluster.plain import refuse_secrets, refuse_words
from sightloom.config import Frozen, load
from sightloom.data.recipe import Recipe
from sightloom.errors import UserMistake
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.suites import Suite
from sightloom.training.curriculum import Curriculum

Kind = Literal["curate", "train", "evaluate", "release", "serve", "command"]
CONFIGS: Final[dict[str, type[Frozen]]] = {
    "curate": Recipe, "train": Curriculum, "evaluate": Suite, "release": GateRules,
}  # fmt: skip
_SET: Final = "set."  # what follows is one key of the config, dots and all
_CRON: Final = re.compile(r"@(yearly|annually|monthly|weekly|daily|hourly)|(\S+\s+){4}\S+")
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Label = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$")]


class Driver(Frozen):
    """What the entrypoint's own process holds; `resources` are Ray's custom ones, `labels` select its node."""

    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    memory_gb: float | None = Field(default=None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class WorkerGroup(Frozen):
    """Nodes of one kind: on Kubernetes a group is made so; elsewhere the cluster must have as much."""

    group: _Label
    min: int = Field(ge=0)
    max: int = Field(ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: int = Field(default=0, ge=0)
    memory_gb: float = Field(default=4, gt=0)
    accelerator: str = ""
    resources: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerGroup":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.accelerator and not self.gpus:
            raise ValueError("an accelerator without gpus")
        return self


class Resources(Frozen):
    """Of the driver, and of the nodes that it shares its work with."""

    driver: Driver = Driver()
    workers: tuple[WorkerGroup, ...] = ()


class Code(Frozen):
    """How the code gets there: packed and uploaded, from the image, or from addresses of zip files.

    `include` adds paths that git does not track, `exclude` leaves out; `working_dir` and `py_modules` belong to `uri`.
    """

    mode: Literal["package", "image", "uri"] = "package"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    working_dir: str = ""
    py_modules: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _addressed(self) -> "Code":
        if (self.mode == "uri") != bool(self.working_dir):
            raise ValueError("mode uri needs working_dir, and only it takes one")
        if self.mode != "uri" and self.py_modules:
            raise ValueError("py_modules belong to mode uri")
        if self.mode != "package" and (self.include or self.exclude):
            raise ValueError("include and exclude belong to mode package")
        return self


class Secret(Frozen):
    """A reference, never a value: a key of a Kubernetes secret, or a file on the nodes (below /run/secrets)."""

    secret: str = ""
    key: str = ""
    file: str = Field(default="", pattern=r"^[A-Za-z0-9/._-]*$")

    @model_validator(mode="after")
    def _one(self) -> "Secret":
        if bool(self.secret) != bool(self.key) or bool(self.secret) == bool(self.file):
            raise ValueError("either {secret, key} or {file}")
        return self


class Retries(Frozen):
    """Of infrastructure errors and exit code 75."""

    max: int = Field(default=0, ge=0, le=100)
    backoff_s: float = Field(default=30, ge=0)


class Ttl(Frozen):
    """How long a finished Kubernetes job keeps its cluster, in seconds."""

    success_s: int = Field(default=600, ge=0)
    failure_s: int = Field(default=86_400, ge=0)


class Schedule(Frozen):
    """When a RayCronJob runs."""

    cron: str
    time_zone: str = "Etc/UTC"

    @model_validator(mode="after")
    def _five(self) -> "Schedule":
        if not _CRON.fullmatch(self.cron):
            raise ValueError(f"'{self.cron}' is no cron line of five fields")
        return self


class Mlflow(Frozen):
    """Where its runs go; the experiment is the job's name where none is given."""

    experiment: str = ""
    tags: dict[str, str] = Field(default_factory=dict)


class JobSpec(Frozen):
    """One file of `jobs/`. `argv`: what follows the verb (a command's all); `set`: overrides of the config's keys."""

    name: _Label
    kind: Kind
    config: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    argv: tuple[str, ...] = ()
    resources: Resources = Resources()
    code: Code = Code()
    env: dict[_Variable, str] = Field(default_factory=dict)
    allow_plain: tuple[str, ...] = ()
    secrets: dict[_Variable, Secret] = Field(default_factory=dict)
    retries: Retries = Retries()
    deadline_s: int | None = Field(default=None, ge=1)
    start_deadline_s: int = Field(default=900, ge=1)
    ttl: Ttl = Ttl()
    schedule: Schedule | None = None
    mlflow: Mlflow = Mlflow()

    @model_validator(mode="after")
    def _whole(self) -> "JobSpec":
        if (self.kind in CONFIGS) != bool(self.config):
            known = ", ".join(CONFIGS)
            raise ValueError(f"kind {self.kind}: config is what {known} need, and only they take one")
        if self.set and self.kind not in CONFIGS:
            raise ValueError(f"kind {self.kind}: set changes keys of a config, and there is none")
        if self.kind in ("serve", "release", "command") and not self.argv:
            raise ValueError(f"kind {self.kind}: argv is required (the model to {self.kind}, or the command)")
        if both := sorted(self.env.keys() & self.secrets.keys()):
            raise ValueError(f"{both[0]} stands in env and in secrets")
        return self

    @property
    def overrides(self) -> list[str]:
        """`set` as `key=value` texts, which `load` reads back as the same values."""
        return [f"{key}={_as_yaml(value)}" for key, value in self.set.items()]

    @property
    def argv_list(self) -> list[str]:
        """The entrypoint's words: the verb's program with its config, overrides and further arguments."""
        if self.kind == "command":
            return list(self.argv)
        sets = [word for override in self.overrides for word in ("--set", override)]
        program = ["python", f"pipelines/{self.kind}.py"]
        if self.kind == "release":  # the version comes first, the gate is an option
            return [*program, *self.argv, "--gate", self.config, *sets]
        return [*program, *([self.config] if self.config else []), *self.argv, *sets]


def read_job(path: str | Path, overrides: list[str] | None = None, root: Path | None = None) -> JobSpec:
    """Read a job and check everything that can be checked before an upload.

    Args:
        path: the YAML file.
        overrides: `key=value` of the job's own keys.
        root: the checkout that `config` is relative to; None: the current folder.

    Raises:
        UserMistake: the job or its config is not valid, or a plain variable looks like a secret.
    """
    spec = load(JobSpec, path, [word for word in overrides or [] if not word.startswith(_SET)])
    if of_config := [word.removeprefix(_SET) for word in overrides or [] if word.startswith(_SET)]:
        spec = spec.model_copy(update={"set": {**spec.set, **_keys(of_config)}})
    refuse_secrets(spec.env, spec.allow_plain, str(path))
    refuse_words(spec.argv_list, str(path))
    check_config(spec, root or Path.cwd())
    return spec


def check_config(spec: JobSpec, root: Path) -> None:
    """Validate the job's config by the class that its verb uses.

    Raises:
        UserMistake: no such file, or it is not valid.
    """
    if not spec.config:
        return
    if Path(spec.config).is_absolute() or ".." in Path(spec.config).parts:
        raise UserMistake(
            f"job '{spec.name}': config '{spec.config}' leaves the checkout", "give a path relative to its root"
        )
    parsed = load(CONFIGS[spec.kind], root / spec.config, spec.overrides)
    if isinstance(parsed, GateRules):
        load(Suite, (root / spec.config).parent / parsed.suites)


def _keys(overrides: list[str]) -> dict[str, Any]:
    keys = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserMistake(f"override '{_SET}{override}' is not of the form key=value", "e.g. --set set.run.seed=7")
        try:
            keys[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise UserMistake(f"the value of override '{_SET}{override}' is not valid YAML") from error
    return keys


def _as_yaml(value: Any) -> str:
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(value, str) and value and yaml.safe_load(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)

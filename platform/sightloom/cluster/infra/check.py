"""The offline checks of infra/: each passes, fails with its words, or is skipped with its reason."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from sightloom.cluster.infra import crds, files

OVERLAYS: Final = ("dev", "gpu")
KUBERNETES: Final = "1.33"  # whose core schemas are used
_LIMIT_S: Final = 120
_CORE: Final = ("v1", "apps/v1", "networking.k8s.io/v1", "policy/v1", "rbac.authorization.k8s.io/v1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check."""

    name: str
    result: Literal["passed", "failed", "skipped"]
    why: str = ""


class Missing(Exception):
    """A program or a folder that a check needs is not there."""


def check(root: Path, crd_folder: Path, tools: Path) -> list[Outcome]:
    """Run every check.

    Args:
        root: the checkout.
        crd_folder: KubeRay's CRDs as YAML files.
        tools: a folder of programs that are looked for before the PATH (kubernetes-validate, hadolint, …).
    """
    find = _finder(tools)
    checks: dict[str, Callable[[], str]] = {
        "generated files": lambda: _drift(root),
        "promtool check rules": lambda: _promtool(root, find, "check", "rules.yml"),
        "promtool test rules": lambda: _promtool(root, find, "test", "rules.test.yml"),
        "serveConfigV2": lambda: _serve(root),
        "compose": lambda: _compose(root, find),
        "Dockerfile": lambda: _run(
            [find("hadolint"), "--failure-threshold", "warning", str(root / "infra/Dockerfile")]
        ),
    }
    for overlay in OVERLAYS:
        checks[f"overlay {overlay} builds"] = partial(_builds, root, overlay, find)
        checks[f"overlay {overlay}: KubeRay's schemas"] = partial(_custom, root, overlay, find, crd_folder)
        checks[f"overlay {overlay}: core schemas"] = partial(_core, root, overlay, find)
    return [_outcome(name, run) for name, run in checks.items()]


def built(root: Path, overlay: str, find: Callable[[str], str]) -> list[dict[str, Any]]:
    """An overlay as kustomize makes it; raises Missing without kustomize and kubectl."""
    return [
        one for one in yaml.safe_load_all(_kustomize(str(root / "infra/kubernetes/overlays" / overlay), find)) if one
    ]


def _outcome(name: str, run: Callable[[], str]) -> Outcome:
    try:
        words = run()
    except Missing as missing:
        return Outcome(name, "skipped", str(missing))
    return Outcome(name, "failed" if words else "passed", words)


def _finder(tools: Path) -> Callable[[str], str]:
    def find(program: str) -> str:
        own = tools / program
        found = str(own) if own.is_file() else shutil.which(program)
        if found is None:
            raise Missing(f"{program} is neither in {tools} nor on the PATH")
        return found

    return find


def _run(command: list[str]) -> str:
    """Empty where a program says yes, else its words."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"


def _drift(root: Path) -> str:
    names = files.drift(root)
    return f"not as `sightloom infra render` writes them: {', '.join(names)}" if names else ""


def _promtool(root: Path, find: Callable[[str], str], verb: str, name: str) -> str:
    return _run([find("promtool"), verb, "rules", str(root / "infra/prometheus" / name)])


def _serve(root: Path) -> str:
    manifest = yaml.safe_load((root / "infra" / files.BASE / "rayservice.yaml").read_text())
    try:
        ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    except ValidationError as error:
        return str(error)
    return ""


def _compose(root: Path, find: Callable[[str], str]) -> str:
    tool = find("check-jsonschema")
    return _run([tool, "--builtin-schema", "vendor.compose-spec", str(root / "infra/compose.yaml")])


@cache
def _kustomize(folder: str, find: Callable[[str], str]) -> str:
    for program, verb in (("kustomize", "build"), ("kubectl", "kustomize")):
        try:
            tool = find(program)
        except Missing:
            continue
        done = subprocess.run([tool, verb, folder], capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        return done.stdout
    raise Missing("neither kustomize nor kubectl is on the PATH")


def _builds(root: Path, overlay: str, find: Callable[[str], str]) -> str:
    try:
        return "" if built(root, overlay, find) else "it is empty"
    except ValueError as error:
        return str(error)


def _custom(root: Path, overlay: str, find: Callable[[str], str], folder: Path) -> str:
    if not folder.is_dir():
        raise Missing(f"KubeRay's CRDs are not in '{folder}'")
    return "\n".join(_refused(built(root, overlay, find), folder))


def _refused(resources: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    for one in resources:
        if one["kind"] in crds.FILES:
            yield from (f"{one['kind']} {one['metadata']['name']}: {words}" for words in crds.problems(one, folder))


def _core(root: Path, overlay: str, find: Callable[[str], str]) -> str:
    tool = find("kubernetes-validate")
    core = [one for one in built(root, overlay, find) if one["apiVersion"] in _CORE]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{overlay}.yaml"
        file.write_text(yaml.safe_dump_all(core))
        return _run([tool, "--strict", "--kubernetes-version", KUBERNETES, str(file)])

"""The strict check of a custom resource: KubeRay's own schema, with unknown keys forbidden."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent.parent.parent.parent / "shared" / "crds"
FILES = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs", "RayService": "rayservices", "RayCluster": "rayclusters"}


@cache
def validator(kind: str) -> Draft202012Validator:
    path = FOLDER / f"{FILES[kind]}.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's schema {path.name} is not in ../shared/crds beside this checkout")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"], top=True))


def problems(resource: dict[str, Any]) -> list[str]:
    found = validator(resource["kind"]).iter_errors(resource)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


def _strict(schema: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """Unknown keys, which Kubernetes drops silently, are errors here; the resource's own `metadata` is Kubernetes'."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {
            name: {} if top and name == "metadata" else _strict(one) for name, one in made["properties"].items()
        }
        made.setdefault("additionalProperties", False)
    elif isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(made["additionalProperties"])
    if isinstance(made.get("items"), dict):
        made["items"] = _strict(made["items"])
    return made

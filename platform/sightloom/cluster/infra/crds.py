"""The strict check of a custom resource: its own schema, with the unknown keys forbidden that Kubernetes drops."""

from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator

FILES: Final = {
    "RayJob": "rayjobs",
    "RayCronJob": "raycronjobs",
    "RayService": "rayservices",
    "RayCluster": "rayclusters",
}


def problems(resource: dict[str, Any], folder: Path) -> list[str]:
    """What KubeRay's schema refuses in a resource; `folder` holds the CRDs as YAML files.

    Raises:
        FileNotFoundError: the kind's CRD is not there.
    """
    found = _validator(resource["kind"], folder).iter_errors(resource)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


@cache
def _validator(kind: str, folder: Path) -> Draft202012Validator:
    text = (folder / f"{FILES[kind]}.yaml").read_text()
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"], top=True))


def _strict(schema: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """Unknown keys are errors; the resource's own `metadata` is Kubernetes'."""
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

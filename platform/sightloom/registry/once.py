"""Registering the same files twice gives one version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sightloom.registry import Registry, Version, manifest_of


def register_once(registry: Registry, name: str, folder: Path, run_id: str, tags: Mapping[str, str]) -> Version:
    """The version of a model folder: the one that has its digest already, or a new one.

    Raises:
        UserMistake: as `Registry.register`.
    """
    digest = hashlib.sha256(manifest_of(folder)).hexdigest()
    for version in registry.versions(name):
        if version.digest == digest:
            return version
    return registry.register(name, folder, run_id, tags)

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sightloom.registry import Registry, Version
from sightloom.tracking import MlflowTracker

from .world import World


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Version]]:
    """A store with three versions and an empty ledger: migrations take seconds, a copy takes none."""
    folder = tmp_path_factory.mktemp("ticks")
    uri = f"sqlite:///{folder}/m.db"
    run, registry = MlflowTracker(uri, "ticks").start_run("r"), Registry(uri)
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text("{}")
    (folder / "export" / "model.safetensors").write_bytes(b"\0" * 10)
    versions = [registry.register("m", folder / "export", run) for _ in range(3)]
    return folder / "m.db", versions


@pytest.fixture
def make(template: tuple[Path, list[Version]], tmp_path: Path) -> Callable[[], World]:
    """Makes worlds, each with a store of its own."""

    def making() -> World:
        copy = tmp_path / f"{uuid.uuid4().hex}.db"
        shutil.copy(template[0], copy)
        return World(f"sqlite:///{copy}", "m", template[1])

    return making

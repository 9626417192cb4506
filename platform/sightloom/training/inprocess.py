"""The crew of one: stages run in the driver's own process, without Ray (`ray: {workers: 0}`)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightloom.training.loop import Event
from sightloom.training.parallel import Workers
from sightloom.training.worker import StageOrder, run_stage


class InProcess:
    """Runs stages here; its latest checkpoint lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, order: StageOrder, on_event: Callable[[Event], None]) -> dict[str, Any]:
        """Have one stage done; errors come out as they are."""
        return run_stage(order, Workers(0, 1), on_event, self._save, self._restore)

    def dismiss(self) -> None:
        """Nobody to let go."""

    def _save(self, name: str, write: Callable[[Path], None] | None) -> None:
        if write is None:
            return
        partial = self._folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        older = self._kept()
        shutil.rmtree(self._folder / name, ignore_errors=True)
        partial.rename(self._folder / name)
        for folder in older:
            if folder.name != name:
                shutil.rmtree(folder)

    def _restore(self, read: Callable[[Path], bool]) -> bool:
        return any(read(folder) for folder in reversed(self._kept()))

    def _kept(self) -> list[Path]:
        found = (folder for folder in self._folder.glob("*-step-*") if folder.suffix != ".partial")
        return sorted(found, key=lambda folder: folder.stat().st_mtime)

"""Finished steps of a demo: one JSON file each, written last, so that the next run goes on after them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom import storage
from sightloom.config import canonical_json, digest
from sightloom.errors import UserMistake

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Steps:
    """The folder `OUT/steps`; `settings_digest` tells other settings' steps apart."""

    folder: Path
    settings_digest: str

    @classmethod
    def open(cls, out: Path, settings: Any) -> "Steps":
        """The steps of a demo in `out`.

        Raises:
            UserMistake: `out` cannot be written, or holds a demo of other settings.
        """
        storage.ensure_writable(str(out), free_bytes=1_000_000_000)
        wanted = digest(settings)
        marker = str(out / "steps" / "settings.json")
        if not storage.create(marker, canonical_json({"digest": wanted, "settings": settings})):
            found = storage.read_json(marker)
            if found.get("digest") != wanted:
                raise UserMistake(
                    f"'{out}' holds a demo with other settings: {found.get('settings')}",
                    "choose another folder with --out, or give the same --seed and --quick",
                )
        return cls(out / "steps", wanted)

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of a step: read if it is finished, else made by `work` and kept with its seconds."""
        file = str(self.folder / f"{name}.json")
        if storage.exists(file):
            return dict(storage.read_json(file))
        started = time.monotonic()
        result = work()
        result = {**result, "seconds": round(time.monotonic() - started, 1)}
        storage.write(file, canonical_json(result))
        return result

"""Who does the work of a run: Ray Train's workers or this very process, hired when the first stage needs them."""

from pathlib import Path
from typing import Final

from sightloom import runtime, storage
from sightloom.training.curriculum import Curriculum
from sightloom.training.inprocess import InProcess
from sightloom.training.trainer import Crew

_OBJECT_STORE_BYTES: Final = 200_000_000


def store_of(curriculum: Curriculum, out: Path) -> str:
    """Where a run keeps its checkpoints."""
    return storage.join(curriculum.checkpoint.uri or str(out / "checkpoints"), curriculum.run.name)


class LazyCrew:
    """The crew, hired when the first stage needs it: a run with nothing to do starts no Ray."""

    def __init__(self, curriculum: Curriculum, folder: Path, ray_address: str) -> None:
        self._curriculum, self._folder, self._address = curriculum, folder, ray_address
        self._crew: Crew | InProcess | None = None
        self._owns_ray = False

    def get(self) -> Crew | InProcess:
        if self._crew is None:
            if self._curriculum.ray.workers == 0:
                self._crew = InProcess()
                return self._crew
            options = self._curriculum.ray
            self._owns_ray = runtime.connect(self._address, max(options.most_workers, 2), _OBJECT_STORE_BYTES)
            crew = Crew(store_of(self._curriculum, self._folder), options)
            crew.start()
            self._crew = crew
        return self._crew

    def close(self) -> None:
        if self._crew is not None:
            self._crew.dismiss()
        if self._owns_ray:
            runtime.disconnect()

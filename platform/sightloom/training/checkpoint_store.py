"""A run's checkpoints in a folder or an object store: their names, their seals, which are whole, which go.

STORE/<stage>-<digest12>-step-<step>[-<attempt>]/     files of torch.distributed.checkpoint, each written by one worker
    checkpoint.json                                   the seal: step, place in the data, size and SHA-256 of every file
The seal is written last. A folder without one, or with a file that differs from it, is never resumed from.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.storage import StorageReader

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.errors import SightloomError
from sightloom.training.checkpoint import Position

SEAL: Final = "checkpoint.json"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"^(?P<stage>.+)-step-(?P<step>\d+)(?:-(?P<attempt>\d+))?$")

Files = dict[str, dict[str, Any]]  # name -> {bytes, sha256}


@dataclass(frozen=True, slots=True)
class Seal:
    """What a checkpoint's seal says."""

    stage_digest: str
    position: Position
    workers: int
    files: Files


class CheckpointStore:
    """The checkpoints below one address.

    Args:
        uri: a folder that all workers share, or an object store's address.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.is_local = storage.is_local(uri)

    def place(self, name: str) -> str:
        """The address of a checkpoint."""
        return storage.join(self.uri, name)

    def names(self, stage: str) -> list[str]:
        """Checkpoints of a stage (`<stage>-<digest12>`), whole or not, the newest first."""
        found = []
        for name in storage.folders(self.uri):
            match = _NAME.match(name)
            if match is not None and match["stage"] == stage:
                found.append((int(match["step"]), int(match["attempt"] or 0), name))
        return [name for *_, name in sorted(found, reverse=True)]

    def free_name(self, stage: str, step: int) -> str:
        """A name for a checkpoint that no other has had: an earlier attempt at the same step may lie there."""
        taken = set(self.names(stage))
        name, attempt = f"{stage}-step-{step:06d}", 0
        while name in taken:
            attempt += 1
            name = f"{stage}-step-{step:06d}-{attempt}"
        return name

    def deliver(self, name: str, files: list[Path]) -> Files:
        """Bring finished local files to their place, if they are not there, and say what they are."""
        listed: Files = {}
        for file in files:
            listed[file.name] = {"bytes": file.stat().st_size, "sha256": storage.sha256_file(file)}
            if not self.is_local:
                storage.put_file(file, storage.join(self.place(name), file.name))
        return listed

    def seal(self, name: str, seal: Seal) -> None:
        """Make a checkpoint whole; its files are there."""
        position = seal.position
        content = {
            "format": _FORMAT,
            "stage_digest": seal.stage_digest,
            "step": position.step,
            "objective": position.objective,
            "skipped": position.skipped,
            "workers": seal.workers,
            "files": seal.files,
        }
        storage.write(storage.join(self.place(name), SEAL), canonical_json(content))

    def read_seal(self, name: str) -> Seal:
        """The seal of a checkpoint.

        Raises:
            SightloomError: there is none, or it is damaged.
        """
        uri = storage.join(self.place(name), SEAL)
        content = storage.read_json(uri)
        try:
            position = Position(int(content["step"]), dict(content["objective"]), int(content["skipped"]))
            return Seal(content["stage_digest"], position, int(content["workers"]), dict(content["files"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SightloomError(f"'{uri}' is no seal of a checkpoint: {error!r}") from error

    def problem(self, name: str, stage_digest: str, share: int = 0, shares: int = 1) -> str:
        """Why a checkpoint cannot be resumed from, or nothing; every `shares`-th file is read, from `share` on."""
        try:
            seal = self.read_seal(name)
            if seal.stage_digest != stage_digest:
                return f"'{name}' is of another stage"
            for number, (file, expected) in enumerate(sorted(seal.files.items())):
                uri = storage.join(self.place(name), file)
                if storage.size(uri) != expected["bytes"]:
                    return f"'{uri}' is {storage.size(uri)} bytes long, not {expected['bytes']}"
                if number % shares == share and storage.sha256_file(uri) != expected["sha256"]:
                    return f"'{uri}' is not what was written: its SHA-256 differs"
        except SightloomError as error:
            return f"'{name}' is not whole: {error.message}"
        return ""

    def reader(self, name: str) -> StorageReader:
        """What torch.distributed.checkpoint loads it with."""
        return FileSystemReader(self.place(name)) if self.is_local else FsspecReader(self.place(name))

    def prune(self, stage: str, keep: int) -> None:
        """Delete all of a stage's checkpoints but the newest `keep` whole ones; none may be under way."""
        whole = 0
        for name in self.names(stage):
            sealed = storage.exists(storage.join(self.place(name), SEAL))
            whole += sealed
            if not sealed or whole > keep:
                self.delete(name)

    def delete(self, name: str) -> None:
        """Delete a checkpoint, the seal first: what is half deleted is not whole."""
        storage.delete(storage.join(self.place(name), SEAL))
        storage.delete(self.place(name))

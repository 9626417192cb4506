"""The manifest of an exported model: which files belong to it, and the proof that they are unchanged."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.errors import SightloomError, UserMistake

MANIFEST = "manifest.json"
_UNSAFE = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # may run code when they are loaded


def manifest_of(folder: Path) -> bytes:
    """The folder's `manifest.json` after checking it, or a new one made from its files.

    Raises:
        UserMistake: no model there, a file that may run code, or one that does not match the manifest.
    """
    if not (folder / "config.json").is_file():
        raise UserMistake(f"'{folder}' is no model: there is no config.json", "give the folder that training exported")
    files = _files(folder)
    for name in files:
        if name.endswith(_UNSAFE):
            raise UserMistake(f"'{folder}/{name}' may run code when it is loaded", "only safetensors are registered")
    if not any(name.endswith(".safetensors") for name in files):
        raise UserMistake(f"'{folder}' holds no weights", "expected *.safetensors")
    if (folder / MANIFEST).is_file():
        data = (folder / MANIFEST).read_bytes()
        verify_folder(folder, hashlib.sha256(data).hexdigest(), "the export")
        return data
    entries = {
        name: {"sha256": storage.sha256_file(path), "bytes": path.stat().st_size} for name, path in files.items()
    }
    return canonical_json({"files": entries})


def verify_folder(folder: Path, digest: str, what: str) -> None:
    """Compare every file with the manifest and the manifest with the digest.

    Raises:
        SightloomError: naming `what` and the first file that is missing, changed or not listed.
    """
    hint = "its files were changed or damaged after registration: it is not loaded"
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise SightloomError(f"{what}: {MANIFEST} is missing in '{folder}'", hint)
    data = manifest.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise SightloomError(f"{what}: {MANIFEST} in '{folder}' does not have the digest {digest[:12]}…", hint)
    try:
        listed: dict[str, Any] = json.loads(data)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise SightloomError(f"{what}: '{manifest}' is not a list of files", hint) from error
    files = _files(folder)
    for name in sorted(listed.keys() | files.keys()):
        if name not in files:
            raise SightloomError(f"{what}: file '{name}' is missing in '{folder}'", hint)
        if name not in listed:
            raise SightloomError(f"{what}: file '{name}' in '{folder}' is not in its manifest", hint)
        size = files[name].stat().st_size
        if size != listed[name]["bytes"] or storage.sha256_file(files[name]) != listed[name]["sha256"]:
            raise SightloomError(f"{what}: file '{name}' in '{folder}' is not the one that was registered", hint)


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name != MANIFEST}

"""The code of a job as zip files: the same tree gives the same bytes and the same address, wherever it is packed."""

import fnmatch
import hashlib
import io
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sightloom import storage
from sightloom.cluster.jobspec import JobSpec
from sightloom.errors import UserMistake

LIMIT_BYTES: Final = 90 * 2**20  # Ray's dashboard refuses bodies above 100 MiB (ray#55877)
MODULE: Final = "platform/sightloom"  # the inner folder: a namespace package is not importable on workers (ray#50161)
_SHOWN: Final = 10
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file knows
_LEFTOVERS: Final = ("__pycache__", ".git", ".venv")


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file. `name` comes from the names, modes and contents in it, whatever zlib compressed them."""

    name: str
    data: bytes
    files: int

    @property
    def uri(self) -> str:
        """The address under which Ray's own store holds it."""
        return f"gcs://{self.name}"


@dataclass(frozen=True, slots=True)
class Package:
    """What a job's processes see: the checkout as their folder, and the package `sightloom` on their path."""

    code: Archive
    module: Archive

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return len(self.code.data) + len(self.module.data)

    @property
    def archives(self) -> tuple[Archive, Archive]:
        """Both zip files."""
        return self.code, self.module


def pack(spec: JobSpec, root: Path, limit: int = LIMIT_BYTES, top: str = "") -> Package:
    """Pack git's files and what `code.include` adds.

    Args:
        spec: the job.
        root: the checkout.
        limit: most bytes of one zip file.
        top: a folder around everything: Ray takes the only one away from zip files that it fetches from elsewhere.

    Raises:
        UserMistake: no checkout, an included path is missing, the config would not travel, or a zip file is too large
            (its ten largest files are named).
    """
    files = dict(_files(spec, root))
    inside = {name.removeprefix("platform/"): path for name, path in files.items() if name.startswith(f"{MODULE}/")}
    around = {name: path for name, path in files.items() if not name.startswith("platform/")}
    if not inside:
        raise UserMistake(f"'{root}' has no {MODULE} that git knows", "run this from a checkout of the project")
    if spec.config and Path(spec.config).as_posix() not in around:
        raise UserMistake(
            f"job '{spec.name}': its config '{spec.config}' would not travel",
            "git add it, or name it in code.include; see code.exclude",
        )
    return Package(_zip(around, limit, top), _zip(inside, limit, top))


def publish(package: Package, folder: str) -> tuple[str, str]:
    """Put both zip files at an address that the cluster reads; what is there already stays.

    Returns:
        The addresses of `working_dir` and of the module.
    """
    addresses = [storage.join(folder, archive.name) for archive in package.archives]
    for archive, address in zip(package.archives, addresses, strict=True):
        storage.create(address, archive.data)
    return addresses[0], addresses[1]


def _files(spec: JobSpec, root: Path) -> Iterator[tuple[str, Path]]:
    names = set(_tracked(root))
    for included in spec.code.include:
        names |= set(_below(root, included, spec.name))
    for name in sorted(names):
        path = root / name
        if path.is_file() and not any(_matches(name, pattern) for pattern in spec.code.exclude):
            yield name, path


def _tracked(root: Path) -> list[str]:
    try:
        shown = subprocess.run(
            ["git", "ls-files", "-z", "--cached"], cwd=root, capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserMistake(f"'{root}' is no git checkout: a package holds git's files", "run this from one") from error
    return [name for name in shown.stdout.decode("utf-8", "surrogateescape").split("\0") if name]


def _below(root: Path, included: str, job: str) -> Iterator[str]:
    path = root / included
    if not path.exists() or not path.resolve().is_relative_to(root.resolve()):
        raise UserMistake(f"job '{job}': code.include '{included}' is not in '{root}'", "give paths relative to it")
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and not any(part in _LEFTOVERS for part in file.parts):
            yield file.relative_to(root).as_posix()


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/")


def _zip(files: dict[str, Path], limit: int, top: str) -> Archive:
    hasher, buffer = hashlib.sha256(), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            data = files[name].read_bytes()
            mode = 0o755 if files[name].stat().st_mode & stat.S_IXUSR else 0o644
            info = zipfile.ZipInfo(f"{top}/{name}" if top else name, _EPOCH)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | mode) << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED, 6)
            hasher.update(f"{info.filename}\0{mode:o}\0{len(data)}\0".encode("utf-8", "surrogateescape") + data)
            if buffer.tell() > limit:
                raise _too_large(files, limit)
    return Archive(f"_ray_pkg_{hasher.hexdigest()[:40]}.zip", buffer.getvalue(), len(files))


def _too_large(files: dict[str, Path], limit: int) -> UserMistake:
    sizes = sorted(((path.stat().st_size, name) for name, path in files.items()), reverse=True)[:_SHOWN]
    largest = "\n".join(f"  {size / 2**20:8.1f} MiB  {name}" for size, name in sizes)
    return UserMistake(
        f"the package is over {limit / 2**20:g} MiB; its largest files:\n{largest}",
        "leave data out with code.exclude, and read it from an address (s3://…)",
    )

"""The model registry on MLflow: register an export, find a version, bring its files here and prove they are the same.

A version is a LoggedModel of MLflow plus a registered model version. Its digest is the SHA-256 of `manifest.json`,
which lists the SHA-256 of every file; nothing is loaded that does not match. Aliases belong to the promotion ledger:
whoever else moves one is overruled by it.
"""

import contextlib
import fcntl
import hashlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from sightloom import storage
from sightloom.errors import SightloomError, UserMistake
from sightloom.registry.files import MANIFEST, manifest_of, verify_folder

__all__ = ["Registry", "Version", "manifest_of", "verify_folder"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # also the name of a Serve application and of a model in the API
_ATTEMPTS = 8  # aliases and names fail with an IntegrityError when two writers meet


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version. `uri` is where its files lie, `digest` the SHA-256 of its manifest."""

    name: str
    version: int
    digest: str
    model_id: str
    uri: str
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """`name:13`."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class About:
    """What MLflow keeps at a model as a whole."""

    aliases: dict[str, int]
    tags: dict[str, str]


class Registry:
    """Registered models in one MLflow store.

    Args:
        uri: `sqlite:///path` or a server's address, as normalised by `store_address.normalized_uri`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(self, name: str, folder: Path, run_id: str, tags: Mapping[str, str] | None = None) -> Version:
        """Upload an exported model as a new version.

        Args:
            name: lower-case letters, digits, `-` and `_`.
            folder: a Hugging Face folder; it must match its `manifest.json`, or one is made in the upload.
            run_id: the run that produced it.
            tags: kept at the version, e.g. `sightloom.preset`.

        Raises:
            UserMistake: a bad name, no model in the folder, files that may run code, or a file that does not match.
        """
        if not _NAME.fullmatch(name):
            raise UserMistake(f"'{name}' is no model name", "lower-case letters, digits, - and _, at most 64")
        manifest = manifest_of(folder)
        digest = hashlib.sha256(manifest).hexdigest()
        all_tags = dict(tags or {}) | {"sightloom.digest": digest, "sightloom.train_run": run_id}
        with self._explained(f"registering {name}"):
            experiment = self._client.get_run(run_id).info.experiment_id
            model = self._client.create_logged_model(experiment, name, run_id, tags=all_tags, model_type="vlm")
            self._upload(model.model_id, folder, manifest)
            self._client.finalize_logged_model(model.model_id, "READY")
            self._make_name(name)
            # The source is the artifact location and not models:/<id>: the sqlite store looks the latter up in the
            # process's global tracking address, which may be another one.
            all_tags["sightloom.model_id"] = model.model_id
            made = self._client.create_model_version(
                name, model.artifact_location, run_id, tags=all_tags, model_id=model.model_id
            )
        return _version(made)

    def resolve(self, reference: str) -> Version:
        """Find `name:13`, `name@champion`, or `name` (its champion); raises UserMistake naming what there is."""
        name, alias, number = _parse(reference)
        try:
            if number is not None:
                return _version(self._client.get_model_version(name, str(number)))
            return _version(self._client.get_model_version_by_alias(name, alias))
        except MlflowException as error:
            raise UserMistake(f"no model version '{reference}' in {self.uri}", self._known(name)) from error

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first; empty where there is no such model."""
        with self._explained(f"reading the versions of {name}"):
            found = self._client.search_model_versions(f"name='{name}'", max_results=10_000)
        return sorted((_version(entry) for entry in found), key=lambda version: version.version)

    def names(self) -> list[str]:
        """The registered models that hold weights, sorted."""
        return sorted(model.name for model in self._client.search_registered_models() if _NAME.fullmatch(model.name))

    def aliases(self, name: str) -> dict[str, int]:
        """Alias to version number; empty where there is no such model."""
        return self.about(name).aliases

    def about(self, name: str) -> About:
        """Aliases and tags of a model as a whole; empty where there is no such model."""
        with self._explained(f"reading {name}"):
            found = self._client.search_registered_models(f"name='{name}'")
        if not found:
            return About({}, {})
        aliases = {alias: int(number) for alias, number in found[0].aliases.items()}
        return About(aliases, dict(found[0].tags))

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a model as a whole."""
        self._insist(f"tag {key} of {name}", self._client.set_registered_model_tag, name, key, value)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version; last writer wins."""
        self._insist(f"alias {alias} of {name}", self._client.set_registered_model_alias, name, alias, str(version))

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias; one that is not there is no error."""
        self._insist(f"alias {alias} of {name}", self._client.delete_registered_model_alias, name, alias)

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._insist(
                f"tag {key}", self._client.set_model_version_tag, version.name, str(version.version), key, value
            )

    def run_file(self, run_id: str, name: str, folder: Path) -> Path:
        """Bring one file of a run into a local folder."""
        with self._explained(f"fetching {name} of run {run_id}"):
            return Path(self._client.download_artifacts(run_id, name, str(folder)))

    def materialize(self, version: Version, cache: Path) -> Path:
        """A local folder with the version's files, every one verified.

        A store on this machine is verified in place. Any other is copied once into `cache/<digest>`, by one process at
        a time; a damaged copy is fetched again.

        Raises:
            SightloomError: the registered files themselves do not match the digest; the message names the file.
        """
        if version.uri.startswith(("file:", "/")):
            folder = storage.local_path(version.uri)
            verify_folder(folder, version.digest, f"version {version.reference}")
            return folder
        target = cache / version.digest
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{version.digest}.lock"):
            if (whole := self.cached(version.digest, cache)) is not None:
                return whole
            if target.is_dir():
                shutil.rmtree(target)
            with tempfile.TemporaryDirectory(dir=cache) as aside, self._explained(f"fetching {version.reference}"):
                partial = Path(aside) / "model"
                partial.mkdir()
                get_artifact_repository(version.uri, tracking_uri=self.uri).download_artifacts("", str(partial))
                verify_folder(partial, version.digest, f"version {version.reference}")
                partial.rename(target)
        return target

    def cached(self, digest: str, cache: Path) -> Path | None:
        """The copy with this digest in the cache, verified; None where there is none or it is damaged."""
        target = cache / digest
        if not target.is_dir():
            return None
        try:
            verify_folder(target, digest, "the cached copy")
        except SightloomError as error:
            _log.warning("%s; it is fetched again", error.message)
            return None
        return target

    def _upload(self, model_id: str, folder: Path, manifest: bytes) -> None:
        # The manifest goes up last and alone: a folder without one is no version.
        with tempfile.TemporaryDirectory() as aside:
            written = Path(aside) / MANIFEST
            written.write_bytes(manifest)
            self._client.log_model_artifacts(model_id, str(folder))
            self._client.log_model_artifact(model_id, str(written))

    def _make_name(self, name: str) -> None:
        with contextlib.suppress(MlflowException):  # it is there already
            self._client.create_registered_model(name)

    def _known(self, name: str) -> str:
        versions, names = self.versions(name), self.names()
        if not versions:
            return f"models: {', '.join(names) or 'none yet'}"
        aliases = ", ".join(f"{alias} → {number}" for alias, number in sorted(self.aliases(name).items()))
        return f"versions of {name}: {', '.join(str(v.version) for v in versions)}; aliases: {aliases or 'none'}"

    def _insist(self, what: str, act: Any, *args: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                act(*args)
                return
            except MlflowException as error:
                if attempt == _ATTEMPTS - 1:
                    raise SightloomError(f"MLflow at {self.uri} refused {what}: {error}") from error
                time.sleep(0.05 * 2**attempt)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            raise SightloomError(f"{what} failed in MLflow at {self.uri}: {error}") from error


def _version(entry: Any) -> Version:
    tags = dict(entry.tags)
    model_id = tags.get("sightloom.model_id") or entry.model_id or ""
    return Version(
        entry.name,
        int(entry.version),
        tags.get("sightloom.digest", ""),
        model_id,
        entry.source,
        entry.run_id or None,
        tags,
    )


def _parse(reference: str) -> tuple[str, str, int | None]:
    name, at, alias = reference.partition("@")
    if at:
        return name, alias, None
    name, colon, number = reference.partition(":")
    if colon and not number.isdigit():
        raise UserMistake(f"'{reference}' is no model version", "name:13, name@champion or name")
    return name, "champion", int(number) if colon else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

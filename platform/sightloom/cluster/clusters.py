"""The clusters file: names for the Rays that a person may submit to, with references to their tokens."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, model_validator

from sightloom.config import Frozen, load, nearest
from sightloom.errors import UserMistake


class Token(Frozen):
    """Where a cluster's token is: in a file or in an environment variable."""

    file: str = ""
    env: str = ""

    @model_validator(mode="after")
    def _one(self) -> "Token":
        if bool(self.file) == bool(self.env):
            raise ValueError("either {file} or {env}")
        return self


class Cluster(Frozen):
    """A Ray. `address`: of its dashboard, which holds the Jobs API; `ca`: the certificates its TLS is checked by."""

    address: str = Field(pattern=r"^https?://[^/@\s]+/?$")
    token: Token | None = None
    ca: str = ""


class Clusters(Frozen):
    """The whole file."""

    clusters: dict[str, Cluster]


def find_cluster(name: str, file: Path, environment: Mapping[str, str]) -> tuple[Cluster, str]:
    """A cluster by its name in the file or by its URL, and its token (empty: none).

    A URL takes the token as Ray's own commands do: RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names.
    RAY_ADDRESS is not read: it would take a job to another cluster than the one that was named.

    Raises:
        UserMistake: no such cluster, or its token is missing.
    """
    if "://" in name:
        parsed = Cluster.model_validate({"address": name}) if _is_address(name) else None
        if parsed is None:
            raise UserMistake(f"--cluster '{name}' is no address of a dashboard", "e.g. http://127.0.0.1:8265")
        if path := environment.get("RAY_AUTH_TOKEN_PATH", ""):
            return parsed, _read(path, name)
        return parsed, environment.get("RAY_AUTH_TOKEN", "")
    if not file.is_file():
        raise UserMistake(
            f"there is no clusters file at '{file}' to find '{name}' in",
            "give --cluster http://HOST:8265, or write clusters: {NAME: {address: …, token: {file: …}}} there",
        )
    known = load(Clusters, file).clusters
    if name not in known:
        raise UserMistake(f"no cluster '{name}' ({file}){nearest(name, list(known))}")
    found = known[name]
    if found.token is None:
        return found, ""
    if found.token.file:
        return found, _read(found.token.file, name)
    if not environment.get(found.token.env):
        raise UserMistake(f"cluster '{name}': its token's variable {found.token.env} is not set")
    return found, environment[found.token.env]


def _is_address(name: str) -> bool:
    scheme, _, rest = name.partition("://")
    return scheme in ("http", "https") and bool(rest) and not set("@/ ") & set(rest.removesuffix("/"))


def _read(path: str, name: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserMistake(f"cluster '{name}': its token's file '{path}' cannot be read ({error.strerror})") from error

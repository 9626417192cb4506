"""What a local stack is made of: its stores, its ports, and the model behind its endpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sightloom.config import Frozen, nearest, validate
from sightloom.errors import UserMistake
from sightloom.serving.clip import ClipSettings

HOST = "127.0.0.1"
_SERVING_CPUS = 2  # beside the machine's own cores: the engines of champion, challenger, previous and one on trial


class Ports(Frozen):
    """Of everything that listens, on loopback. The defaults are those of each program."""

    mlflow: int = Field(default=5000, ge=1, le=65_535)
    dashboard: int = Field(default=8265, ge=1, le=65_535)
    gcs: int = Field(default=6379, ge=1, le=65_535)
    client: int = Field(default=10_001, ge=1, le=65_535)
    agent: int = Field(default=52_365, ge=1, le=65_535)
    endpoint: int = Field(default=8000, ge=1, le=65_535)
    prometheus: int = Field(default=9090, ge=1, le=65_535)


class StackOptions(Frozen):
    """A stack. `database`: of MLflow, empty: an sqlite file; `artifacts`: a folder or s3://…, empty: a folder; `clips`:
    open_clip models for embeddings beside the champion, by name.

    `num_cpus` is what Ray may promise at once: the machine's cores, and two for what serves.
    """

    database: str = ""
    artifacts: str = ""
    num_cpus: int = Field(default_factory=lambda: (os.cpu_count() or 1) + _SERVING_CPUS, ge=1)
    ports: Ports = Ports()
    clips: dict[str, ClipSettings] = Field(default_factory=dict)

    @field_validator("database")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "sqlite:///")):
            raise ValueError("a database is postgresql://user@host/name or sqlite:///path")
        if urlsplit(value).password:
            raise ValueError("a password would stand in the list of processes; set PGPASSWORD instead")
        return value

    def backend(self, folder: Path) -> str:
        """The address of MLflow's database."""
        if self.database.startswith("postgresql://"):  # SQLAlchemy's own choice of a driver changed with 2.1
            return self.database.replace("postgresql://", "postgresql+psycopg2://", 1)
        return self.database or f"sqlite:///{folder / 'mlflow.db'}"

    def destination(self, folder: Path) -> str:
        """Where MLflow's server puts artifacts."""
        return self.artifacts or str(folder / "artifacts")

    @property
    def tracking_uri(self) -> str:
        """The address of MLflow's server."""
        return f"http://{HOST}:{self.ports.mlflow}"

    @property
    def dashboard(self) -> str:
        """The address of Ray's Jobs API."""
        return f"http://{HOST}:{self.ports.dashboard}"

    @property
    def ray(self) -> str:
        """The address that drivers join."""
        return f"{HOST}:{self.ports.gcs}"

    @property
    def endpoint(self) -> str:
        """The address of the served model."""
        return f"http://{HOST}:{self.ports.endpoint}"

    @property
    def prometheus(self) -> str:
        """The address of Prometheus."""
        return f"http://{HOST}:{self.ports.prometheus}"


def read_ports(words: Sequence[str]) -> Ports:
    """Read `NAME=PORT` words.

    Raises:
        UserMistake: no such name, no number, or one port twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in Ports.model_fields:
            raise UserMistake(f"--port '{word}': no part is called '{name}'{nearest(name, list(Ports.model_fields))}")
        if not number.isdigit():
            raise UserMistake(f"--port '{word}' is not of the form NAME=PORT", "e.g. --port endpoint=8001")
        found[name] = number
    ports = validate(Ports, found, "--port")
    taken: dict[int, str] = {}
    for name, number in ports.model_dump().items():
        if number in taken:
            raise UserMistake(f"port {number} is given to {taken[number]} and to {name}", "give one another --port")
        taken[number] = name
    return ports

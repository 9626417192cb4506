"""Addresses of MLflow stores."""

from pathlib import Path

from sightloom.errors import UserMistake


def normalized_uri(uri: str) -> str:
    """A store's address that means the same in every process; the folder of an sqlite file is made.

    Raises:
        UserMistake: neither `sqlite:///path` nor http(s), or the folder cannot be made.
    """
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    path = uri.removeprefix("sqlite:///")
    if path == uri or not path:
        raise UserMistake(f"'{uri}' is no MLflow address", "give sqlite:///path/mlflow.db or http(s)://host:port")
    file = Path(path).expanduser().absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserMistake(f"the folder of MLflow's database '{file}' cannot be made: {error.strerror}") from error
    return f"sqlite:///{file}"

"""Configuration: YAML into frozen, validated trees, with overrides, digests and flat parameters."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from sightloom.errors import UserMistake


class Frozen(pydantic.BaseModel):
    """Base of every configuration branch: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=pydantic.BaseModel)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply `key=value` overrides and validate the result once.

    Args:
        cls: the configuration's class.
        path: a local YAML file.
        overrides: `dotted.path=value`, the value in YAML; list elements by index (`select.top.0.fraction=0.2`).

    Raises:
        UserMistake: the file is missing or no YAML, a key is unknown (the nearest is named) or a value is invalid.
    """
    file = Path(path)
    if not file.is_file():
        raise UserMistake(f"no configuration file at '{path}'", "give the path of a YAML file")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserMistake(f"'{path}' is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserMistake(f"'{path}' must hold a mapping of keys, found {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return validate(cls, data, str(path))


def validate(cls: type[T], data: Any, origin: str) -> T:
    """Validate plain data; `origin` (a file's name, 'command line') stands in the errors."""
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        errors, more = error.errors(), error.error_count() - 1
        first = errors[0]
        if first["type"] == "missing":  # a misspelt key is why another one is missing
            first = next((found for found in errors if found["type"] == "extra_forbidden"), first)
        raise UserMistake(_explain(cls, first, origin) + (f" (and {more} more)" if more else "")) from error


def canonical_json(value: Any) -> bytes:
    """Canonical JSON (sorted keys, no spaces, UTF-8) of models, dataclasses and plain data; NaN is refused."""
    return _CANONICAL.encode(value).encode()


def digest(value: Any) -> str:
    """SHA-256, 64 hex digits, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def flatten(value: Any) -> dict[str, str]:
    """Flatten a configuration tree into `dotted.key -> text`, as experiment parameters want it."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        elif isinstance(node, list) and any(isinstance(child, dict) for child in node):
            for index, child in enumerate(node):
                walk(f"{prefix}.{index}", child)
        else:
            flat[prefix] = node if isinstance(node, str) else json.dumps(node, ensure_ascii=False)

    walk("", json.loads(canonical_json(value)))
    return flat


def nearest(word: str, known: Sequence[str]) -> str:
    """The phrase `; did you mean 'x'?`, or the list of what is known when nothing is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(sorted(known))}"


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
)


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserMistake(f"override '{override}' is not of the form key=value", "e.g. --set out=/tmp/pool")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise UserMistake(f"the value of override '{override}' is not valid YAML") from error
    node: Any = data
    *parents, last = path.split(".")
    for part in parents:
        child = node[_index(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(child, (dict, list)):
            raise UserMistake(f"override '{override}': '{part}' holds a plain value, not keys")
        node = child
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserMistake(f"override '{override}': '{part}' is not an index into a list of {len(node)}")
    return int(part)


def _explain(cls: type[pydantic.BaseModel], error: Any, origin: str) -> str:
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_beside(cls, list(error["loc"]))
        inside = f" in {'.'.join(location[:-1])}" if location[:-1] else ""
        return f"unknown key '{location[-1]}'{inside} ({origin})" + (nearest(location[-1], known) if known else "")
    if error["type"] == "missing":
        return f"'{where}' is required ({origin})"
    shown = "" if isinstance(error["input"], (dict, list)) else f", got {error['input']!r}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where + ': ' if where else ''}{message}{shown} ({origin})"


def _keys_beside(cls: type[pydantic.BaseModel], location: list[Any]) -> list[str]:
    """Names of the keys that were allowed where an unknown one stood: walks the models along the error's path."""
    models: list[type[pydantic.BaseModel]] = [cls]
    for part in location[:-1]:
        step: list[type[pydantic.BaseModel]] = []
        for model in models:
            field = model.model_fields.get(part) if isinstance(part, str) else None
            step += _models_in(field.annotation) if field is not None else []
        # indexes, mapping keys and discriminator tags stand in the path without being fields
        models = step or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]
    return []

"""`response_format`: the JSON Schema that an answer is bound to, checked before any engine sees it (serving.md §3.3).

Only keywords that the grammar really enforces are taken: xgrammar reads others and lets everything pass.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sightloom.config import nearest
from sightloom.later import Later
from sightloom.serving.errors import invalid
from sightloom.serving.protocol import ResponseFormat

if TYPE_CHECKING:
    import xgrammar
else:  # and torch with it: the endpoint answers before they are there
    xgrammar = Later("xgrammar")

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 64
MAX_COUNT: Final = 10_000  # of items, characters and properties that a bound may name
COMPILE_S: Final = 2.0
PARAM: Final = "response_format.json_schema.schema"
_FORMATS: Final = frozenset(
    {"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference",
     "json-pointer", "relative-json-pointer", "uri-template"}
)  # fmt: skip
_NOTES: Final = frozenset(
    {"title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "deprecated", "readOnly",
     "writeOnly", "discriminator"}
)  # fmt: skip
_COUNTS: Final = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_SCHEMAS: Final = frozenset({"items", "additionalProperties"})
_MAPS: Final = frozenset({"properties", "$defs", "definitions"})
_LISTS: Final = frozenset({"prefixItems", "anyOf", "oneOf", "allOf"})
_PLAIN: Final = frozenset({"type", "required", "enum", "const", "pattern", "format", "$ref"})
KEYWORDS: Final = _NOTES | _COUNTS | _NUMBERS | _SCHEMAS | _MAPS | _LISTS | _PLAIN


async def grammar_of(wanted: ResponseFormat | None) -> str | None:
    """The schema, as text, that binds the answer; None: the answer is free.

    Raises:
        ApiError: 400 `invalid_schema`, `schema_too_complex` or `unsupported_parameter`, with the path.
    """
    if wanted is None:
        return None
    if wanted.type != "json_schema" and wanted.json_schema is not None:
        why = f"'response_format': a schema means nothing to the type '{wanted.type}'; ask for 'json_schema'"
        raise invalid(why, "response_format.json_schema")
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type":"object"}'
    given = wanted.json_schema
    if given is None or not isinstance(given.get("schema"), Mapping):
        raise invalid("'response_format.json_schema.schema' is required", PARAM, "missing_parameter")
    for key, value in given.items():
        if key not in ("name", "description", "strict", "schema") and value is not None:
            raise invalid(
                f"'{key[:64]}' is not a parameter", f"response_format.json_schema.{key[:64]}", "unknown_parameter"
            )
    text = json.dumps(given["schema"], ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_BYTES:
        raise invalid(f"the schema has more than {MAX_BYTES} bytes", PARAM, "schema_too_complex")
    check(given["schema"], PARAM, 0)
    await asyncio.to_thread(warm_up)
    try:
        async with asyncio.timeout(COMPILE_S):
            await asyncio.to_thread(compile_schema, text)
    except TimeoutError as error:
        raise invalid(f"the schema takes longer than {COMPILE_S:g} s", PARAM, "schema_too_complex") from error
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[-1].rpartition(": ")[2]
        raise invalid(f"the schema cannot be used: {why[:200]}", PARAM, "invalid_schema") from error
    return text


def warm_up() -> None:
    """Load the compiler, once: it takes seconds, which are none of a request's."""
    compile_schema('{"type":"null"}')


def compile_schema(text: str) -> "xgrammar.Grammar":
    """The grammar of compact JSON under a schema; `RuntimeError` where there is none."""
    return xgrammar.Grammar.from_json_schema(text, any_whitespace=False, separators=(",", ":"))


def check(schema: Any, path: str, depth: int) -> None:
    """See that a schema uses only what is enforced.

    Raises:
        ApiError: 400, with the path of the keyword.
    """
    if depth > MAX_DEPTH:
        raise invalid(f"the schema is nested deeper than {MAX_DEPTH}", PARAM, "schema_too_complex")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise invalid(f"'{path}': a schema is an object or a boolean", path, "invalid_schema")
    for key, value in schema.items():
        here = f"{path}.{key[:64]}"
        if key not in KEYWORDS:
            hint = nearest(key, sorted(KEYWORDS))
            raise invalid(f"'{here}': this keyword of JSON Schema is not enforced here{hint}", here, "invalid_schema")
        _check_value(key, value, here)
        if key in _SCHEMAS:
            check(value, here, depth + 1)
        elif key in _MAPS:
            for name, inner in value.items():
                check(inner, f"{here}.{name[:64]}", depth + 1)
        elif key in _LISTS:
            for place, inner in enumerate(value):
                check(inner, f"{here}[{place}]", depth + 1)
    if "pattern" in schema and {"minLength", "maxLength", "format"} & set(schema):
        raise invalid(f"'{path}': a pattern beside a length or a format is not enforced", path, "invalid_schema")


def _check_value(key: str, value: Any, here: str) -> None:
    wrong = ""
    if key in _COUNTS and not (type(value) is int and 0 <= value <= MAX_COUNT):
        wrong = f"a whole number from 0 to {MAX_COUNT} is expected"
    elif key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
        wrong = "a number is expected"
    elif key in _MAPS and not isinstance(value, Mapping):
        wrong = "an object is expected"
    elif key in _LISTS and not (isinstance(value, list) and value):
        wrong = "a list is expected"
    elif key == "allOf" and len(value) > 1:
        wrong = "several schemas at once are not enforced"
    elif key == "format" and value not in _FORMATS:
        wrong = f"this format is not enforced; known: {', '.join(sorted(_FORMATS))}"
    elif key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        wrong = "only references inside the schema are followed"
    if wrong:
        raise invalid(f"'{here}': {wrong}", here, "invalid_schema")

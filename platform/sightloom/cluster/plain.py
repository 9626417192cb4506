"""Which values may stand in the open: Ray shows a job's environment to every caller of its API and logs it."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from sightloom.errors import UserMistake

_NAMES: Final = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|PRIVATE|(API|ACCESS|AUTH)_?KEY)", re.IGNORECASE)
_WORD: Final = re.compile(r"[A-Za-z0-9+/=_\-]{20,}")
_BITS: Final = 4.0  # per character; an English word list of 20 characters has about 3.5, base64 of random bytes 4.3
_KEYS: Final = re.compile(
    r"\b(sk-|hf_|gh[opsu]_|github_pat_|glpat-|xox[abps]-|A[KS]IA|AIza|eyJ[\w-]+\.)\w{10,}|-----BEGIN "
)
_CREDENTIALS: Final = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_HEX: Final = re.compile(r"[0-9a-fA-F]{32,}")


def refuse_secrets(env: dict[str, str], allowed: tuple[str, ...], origin: str) -> None:
    """Refuse values that look like secrets; the value itself is never repeated.

    Args:
        env: plain variables, name to value.
        allowed: names that may pass whatever they look like.
        origin: what holds them, for the error.

    Raises:
        UserMistake: a name or a value looks like a secret's.
    """
    for name, value in env.items():
        why = None if name in allowed else suspicion(name, value)
        if why is not None:
            raise UserMistake(
                f"env.{name} ({origin}) {why}, and Ray shows a job's variables to every caller of its API",
                f"move it to secrets: {{{name}: {{file: …}}}}; if it is none, add {name} to allow_plain",
            )


def refuse_words(words: Iterable[str], origin: str) -> None:
    """Refuse words of a command line that hold a secret: Ray shows a job's entrypoint as it does its variables.

    Raises:
        UserMistake: a word does; it is not repeated.
    """
    for number, word in enumerate(words):
        if (why := exposed(word)) is not None:
            raise UserMistake(
                f"word {number + 1} of the job's command ({origin}) {why}, and Ray shows it to every caller of its API",
                "give it as a variable, by reference: secrets: {NAME: {file: …}}",
            )


def suspicion(name: str, value: str) -> str | None:
    """Why a variable looks like a secret; None where it does not."""
    if _NAMES.search(name):
        return "has a secret's name"
    if (why := exposed(value)) is not None:
        return why
    if "://" in value:
        try:
            parts = urlsplit(value)
        except ValueError:
            return "holds an address that cannot be read"
        return "holds an address with credentials" if "@" in parts.netloc else None
    if any(_HEX.fullmatch(word) or entropy(word) >= _BITS for word in _WORD.findall(value) if _mixed(word)):
        return "looks random, as a key does"
    return None


def exposed(text: str) -> str | None:
    """What a text holds that is a secret for sure; None where there is nothing of that kind."""
    if _KEYS.search(text):
        return "holds a key"
    return "holds an address with credentials" if _CREDENTIALS.search(text) else None


def entropy(text: str) -> float:
    """Shannon entropy of the text's characters, in bits a character."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def _mixed(word: str) -> bool:
    return any(letter.isdigit() for letter in word) and any(letter.isalpha() for letter in word)

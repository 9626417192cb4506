"""Signals of a caption: length, language, repetition, boilerplate."""

from __future__ import annotations

import functools
import hashlib
import re

from py3langid.langid import MODEL_FILE, LanguageIdentifier

_BOILERPLATE = re.compile(
    r"https?://|www\.|<[a-z/][^>]*>|&[a-z]+;|\b[\w-]+\.(?:jpe?g|png|gif|webp|bmp|tiff?)\b"
    r"|^(?:img|dsc|dscn|image|photo|picture|untitled|screenshot)[ _-]?\d*$",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.lru_cache(maxsize=4_096)
def language(text: str) -> tuple[str, float]:
    """Return the language's code and the probability of it (py3langid, offline)."""
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


def caption_signals(text: str) -> dict[str, object]:
    """Return the caption columns of one text."""
    words = _WORD.findall(text.lower())
    code, probability = language(text[:300]) if words else ("", 0.0)
    return {
        "text_chars": len(text),
        "text_words": len(words),
        "text_lang": code,
        "text_lang_p": probability,
        "text_repeat": 1.0 - len(set(words)) / len(words) if words else 0.0,
        "text_boilerplate": bool(_BOILERPLATE.search(text.strip())),
        "text_hash": text_hash(text),
    }


def text_hash(text: str) -> int:
    """Return 64 bits that are equal for equal texts."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")

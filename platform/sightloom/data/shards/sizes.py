"""How many bytes a sample takes in a tar: the most it can, which the caps count, and what it usually takes."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK = 512
RECORD = 10_240  # a tar's size is a multiple of this
MEMBERS = 3
JSON_BOUND = 420  # uid, names of fields, numbers, a second SHA-256; addresses and scores come on top
JSON_USUAL = 150  # that much of it a sample without scores has
SCORE_BOUND = 72
SCORE_USUAL = 30


def upper_bounds(rows: pa.Table, num_scores: int, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return an upper bound of each sample's bytes in the tar [N]: content, JSON, headers, padding."""
    extra = JSON_BOUND + SCORE_BOUND * num_scores + MEMBERS * (2 * BLOCK - 1)
    return _column(rows, "payload_bytes") + words + extra


def usual_sizes(rows: pa.Table, num_scores: int, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return about what each sample takes [N], so that shards of equal sums are equal: the bound's slack differs.

    The image's padding is exact; that of text and JSON is half a block each.
    """
    image = _column(rows, "image_bytes")
    padded = image + -image % BLOCK + BLOCK * (image > 0)
    has_text = np.asarray([kind == "pair" for kind in rows.column("kind").to_pylist()], np.int64)
    rest = _column(rows, "payload_bytes") - image + words + JSON_USUAL + SCORE_USUAL * num_scores
    headers = BLOCK * (1 + has_text)
    return np.asarray(padded + rest + headers + BLOCK // 2 * (1 + has_text), np.int64)


def words_of(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return the bytes of what our JSON object names of each row [N]."""
    columns = (rows.column(name).to_pylist() for name in ("src", "source_key", "domain"))
    dumps = json.JSONEncoder(ensure_ascii=False).encode
    lengths = [len(dumps(words).encode("utf-8", "replace")) for words in zip(*columns, strict=True)]
    return np.asarray(lengths, np.int64)


def _column(rows: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return np.asarray(rows.column(name).fill_null(0).to_numpy(zero_copy_only=False), np.int64)

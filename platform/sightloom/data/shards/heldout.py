"""Held-out pictures: which images never train, decided by the image's own hash.

The decision hangs on the picture and not on the sample, because several questions share one picture; it needs no list
to be kept and stays the same when the corpus grows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def is_heldout(sha256_hex: str, share: float) -> bool:
    """Tell whether the image with this SHA-256 (64 hex digits) belongs to the held-out `share` (0..1) of pictures."""
    return int(sha256_hex[-16:], 16) < share * 2.0**64


def heldout_mask(table: pa.Table, share: float) -> npt.NDArray[np.bool_]:
    """Return which rows of a shard table (column `sha256`) are held out, bool [N]; rows without a picture train."""
    hashes = table.column("sha256").to_pylist()
    return np.fromiter((value is not None and is_heldout(value, share) for value in hashes), dtype=np.bool_)

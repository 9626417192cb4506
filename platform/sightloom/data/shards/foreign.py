"""Files beside the shards for other readers: Energon's `.nv-meta` and open_clip's `sizes.json`.

Energon (megatron-energon 7.4.1) needs the tars' `.tar.idx`, written with each shard, `.info.json`, `split.yaml` and
`dataset.yaml`; with these its loader and `energon lint` work without `energon prepare` and without an index.sqlite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sightloom.config import canonical_json
from sightloom.data.shards.manifest import Shard
from sightloom.data.shards.reader import IMAGE_EXTENSIONS

ENERGON_VERSION = "7.4.1"


def foreign_files(shards: Sequence[Shard], images: Mapping[str, int]) -> dict[str, bytes]:
    """Return the content of each file by its path below the shards' folder.

    Args:
        shards: in order.
        images: samples by image extension; "" counts those without an image.
    """
    counts = {shard.name: shard.samples for shard in shards}
    kinds = {kind for shard in shards for kind in shard.kinds}
    info = {"energon_version": ENERGON_VERSION, "shard_counts": counts}
    split = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    return {
        "sizes.json": canonical_json(counts),
        ".nv-meta/.info.json": json.dumps(info, indent=2).encode(),
        ".nv-meta/split.yaml": yaml.safe_dump(split, sort_keys=False).encode(),
        ".nv-meta/dataset.yaml": yaml.safe_dump(_dataset(kinds, images), sort_keys=False).encode(),
    }


def _dataset(kinds: set[str], images: Mapping[str, int]) -> dict[str, Any]:
    """Say what Energon makes of a sample.

    A picture and its caption become a CaptioningSample; the caption of a record is its parsed JSON. Where some samples
    have no picture no sample type of Energon fits all, and they come crude, as a dictionary of members for a cooker.
    """
    if images.get("", 0):
        return {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    texts = [name for name, there in (("txt", "pair" in kinds), ("json", bool(kinds - {"pair"}))) if there]
    found = [name for name in IMAGE_EXTENSIONS if images.get(name, 0)]
    return {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": ",".join(found or ["jpg"]), "caption": ",".join(texts or ["txt"])},
    }

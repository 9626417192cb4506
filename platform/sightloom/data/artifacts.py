"""The artifacts beside the scores: duplicates, plans, the files for other readers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom import storage
from sightloom.config import canonical_json, digest
from sightloom.data.decisions import parts_of, read_parts
from sightloom.data.dedup.duplicates import OUTSIDE, Duplicates
from sightloom.data.ledger import parquet_bytes
from sightloom.data.prepare import Prepared
from sightloom.data.recipe import Recipe
from sightloom.data.select.columns import Scored
from sightloom.data.shards.foreign import foreign_files
from sightloom.data.shards.manifest import BuiltShard, File, Manifest
from sightloom.errors import UserMistake

PLAN_COLUMNS = ("shard", "series", "pos", "key", "uid", "copy", "src", "src_pos", "src_offset", "src_size",
                "bound_bytes")  # fmt: skip


def fingerprints(prepared: Prepared, chunks: Sequence[str]) -> dict[str, Any]:
    """Name each step's artifacts by all that decides their content."""
    recipe = prepared.recipe
    scores = {group.name: group.fingerprint for group in prepared.groups}
    config = recipe.dedup.model_dump(mode="json")
    config["decontaminate"] = [[reference.name, reference.content] for reference in prepared.references]
    dedup = digest({"scores": scores, "chunks": sorted(chunks), "config": config})[:12]
    seeded = {"seed": recipe.seed} if recipe.select.sample is not None else {}
    select = digest({"dedup": dedup, "config": recipe.select, **seeded})[:12]
    plan = digest({"select": select, "config": recipe.pack, "name": recipe.name, "seed": recipe.seed})[:12]
    return {"scores": scores, "dedup": dedup, "select": select, "plan": plan}


def write_duplicates(out: str, fingerprint: str, scored: Scored, duplicates: Duplicates) -> None:
    """Write the losers, a part for each million rows; `done.json` last."""
    folder = storage.join(out, "dedup", fingerprint)
    uids = scored.read(["uid"]).column("uid").combine_chunks()
    losers = duplicates.table(uids).append_column("of_row", pa.array(duplicates.winners, pa.int64()))
    for number, (first, last) in enumerate(parts_of(scored.num_rows)):
        low, high = np.searchsorted(duplicates.rows, [first, last])
        part = losers.slice(low, high - low)
        storage.write(storage.join(folder, "dups.parquet", f"part-{number:05d}.parquet"), parquet_bytes(part))
    storage.create(
        storage.join(folder, "done.json"), canonical_json({"rows": scored.num_rows, "dups": losers.num_rows})
    )


def read_duplicates(out: str, fingerprint: str) -> Duplicates | None:
    """Return the losers as they were written; None where that was not done."""
    folder = storage.join(out, "dedup", fingerprint)
    if not storage.exists(storage.join(folder, "done.json")):
        return None
    rows = storage.read_json(storage.join(folder, "done.json"))["rows"]
    table = read_parts(storage.join(folder, "dups.parquet"), rows)
    found = [table.column(name).to_numpy(zero_copy_only=False) for name in ("row", "of_row")]
    named = table.filter(pc.equal(table.column("of_row"), OUTSIDE)).select(["row", "method", "of"]).to_pylist()
    outside = {one["row"]: (one["method"], one["of"]) for one in named}
    return Duplicates(found[0], tuple(table.column("reason").to_pylist()), found[1], outside)


def write_plan(out: str, fingerprint: str, planned: pa.Table) -> str:
    """Write the packing plan and return its folder."""
    folder = storage.join(out, "plan", fingerprint)
    named = planned.select(list(PLAN_COLUMNS))
    for number, (first, last) in enumerate(parts_of(planned.num_rows)):
        data = parquet_bytes(named.slice(first, last - first))
        storage.write(storage.join(folder, "plan.parquet", f"part-{number:05d}.parquet"), data)
    return folder


def forget_other_plans(recipe: Recipe, fingerprint: str) -> None:
    """Drop the shard commits of other plans for this name, finished or not: their tars are about to be replaced."""
    root = storage.join(recipe.out, "plan")
    for info in storage.listing(storage.join(root, "*", "commit", f"{recipe.name}-*.json")) if _any(recipe) else ():
        if f"/plan/{fingerprint}/" not in info.uri:
            storage.delete(info.uri)


def _names(folder: str) -> list[str]:
    """Return the names in a folder; none where there is no folder yet."""
    try:
        return [info.uri.rsplit("/", 1)[-1] for info in storage.listing(folder)]
    except UserMistake:
        return []


def _any(recipe: Recipe) -> bool:
    return any(name.endswith(".tar") for name in _names(storage.join(recipe.out, "shards", recipe.name)))


def delete_strangers(folder: str, manifest: Manifest) -> None:
    """Delete files of an unfinished or replaced run that the new manifest does not name."""
    named = {name for entry in manifest.shards for name in (entry.name, entry.name + ".idx", entry.table)}
    for name in _names(folder):
        if name.endswith((".tar", ".tar.idx", ".parquet")) and name not in named:
            storage.delete(storage.join(folder, name))


def write_foreign(folder: str, built: Sequence[BuiltShard]) -> tuple[File, ...]:
    """Write what other readers need beside the shards; return the files' checksums."""
    images = Counter[str]()
    for one in built:
        images.update(one.images)
    found = foreign_files([one.shard for one in built], images)
    for name, data in found.items():
        storage.write(storage.join(folder, name), data)
    return tuple(File(name=name, sha256=hashlib.sha256(data).hexdigest()) for name, data in sorted(found.items()))

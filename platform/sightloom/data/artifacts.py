"""The artifacts beside the scores: duplicates, decisions, plans, the manifest, the experiment's run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import sightloom
from sightloom import storage
from sightloom.config import canonical_json, digest, flatten
from sightloom.data.decisions import parts_of, read_parts
from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.ledger import list_names, parquet_bytes
from sightloom.data.measure import COLUMNS
from sightloom.data.prepare import MANIFEST, Prepared, describe_source
from sightloom.data.recipe import Recipe
from sightloom.data.select.columns import Scored
from sightloom.data.select.decision import Decision
from sightloom.data.shards.manifest import FORMAT, Manifest, Shard, Totals
from sightloom.data.shards.pack import TABLE_COLUMNS
from sightloom.data.signals.config import licence_of
from sightloom.data.signals.heads import HeadSpec
from sightloom.data.sources.chunks import SourceFile

if TYPE_CHECKING:
    from sightloom.tracking import Tracker

PLAN_COLUMNS = ("shard", "pos", "key", "uid", "copy", "src", "src_pos", "src_offset", "src_size", "bound_bytes")
OWN_DOCS = {
    "key": "name of the sample's members",
    "offset": "first byte of the sample in its tar",
    "size": "bytes of the whole sample, headers included",
    "image_ext": "extension of the image member",
}


def fingerprints(prepared: Prepared, chunks: Sequence[str]) -> dict[str, Any]:
    """Name each step's artifacts by all that decides their content."""
    recipe = prepared.recipe
    scores = {group.name: group.fingerprint for group in prepared.groups}
    evaluation = [[one.name, one.base.fingerprint, one.chunks, sorted(one.scorers)] for one in prepared.references]
    more = {"references": evaluation} if evaluation else {}
    dedup = digest({"scores": scores, "chunks": sorted(chunks), "config": recipe.dedup, **more})[:12]
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
    return Duplicates(found[0], tuple(table.column("reason").to_pylist()), found[1])


def write_plan(out: str, fingerprint: str, planned: pa.Table) -> str:
    """Write the packing plan and return its folder."""
    folder = storage.join(out, "plan", fingerprint)
    named = planned.select(list(PLAN_COLUMNS))
    for number, (first, last) in enumerate(parts_of(planned.num_rows)):
        data = parquet_bytes(named.slice(first, last - first))
        storage.write(storage.join(folder, "plan.parquet", f"part-{number:05d}.parquet"), data)
    return folder


def forget_other_plans(recipe: Recipe, fingerprint: str) -> None:
    """Drop the shard commits of other plans for this name: their tars are about to be replaced."""
    root = storage.join(recipe.out, "plan")
    for info in storage.listing(storage.join(root, "*", "commit", f"{recipe.name}-*.json")) if _any(recipe) else ():
        if f"/plan/{fingerprint}/" not in info.uri:
            storage.delete(info.uri)


def _any(recipe: Recipe) -> bool:
    return any(name.endswith(".tar") for name in list_names(storage.join(recipe.out, "shards", recipe.name)))


def delete_strangers(folder: str, manifest: Manifest) -> None:
    """Delete files of an unfinished or replaced run that the new manifest does not name."""
    named = {name for entry in manifest.shards for name in (entry.name, entry.name + ".idx", entry.table)}
    for name in list_names(folder):
        if name.endswith((".tar", ".tar.idx", ".parquet")) and name not in named:
            storage.delete(storage.join(folder, name))


def make_manifest(
    prepared: Prepared,
    per_source: list[list[SourceFile]],
    decision: Decision,
    not_fetched: dict[str, int],
    fingerprint: dict[str, Any],
    entries: Sequence[dict[str, Any]],
) -> Manifest:
    """Put together what the shards hold and how they came about."""
    shards = tuple(Shard.model_validate(entry) for entry in entries)
    domains: dict[str, int] = {}
    for shard in shards:
        for name, count in shard.domains.items():
            domains[name] = domains.get(name, 0) + count
    dropped = {**decision.dropped, **not_fetched}
    totals = Totals(
        rows_in=len(decision.codes) + sum(not_fetched.values()),
        kept=int(decision.keep.sum()),
        dropped=dict(sorted(dropped.items())),
        failed=decision.failed,
        samples=sum(shard.samples for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        domains=dict(sorted(domains.items())),
    )
    sources = [describe_source(s, files) for s, files in zip(prepared.recipe.source, per_source, strict=True)]
    manifest = Manifest(
        format=FORMAT,
        name=prepared.recipe.name,
        code={"sightloom": sightloom.__version__, "git": None},
        recipe=prepared.identity,
        shards=shards,
        totals=totals,
        columns=_columns(prepared),
        decontaminated=tuple(
            {"name": one.name, "removed": decision.dropped.get(f"eval_overlap_{one.name}", 0)}
            for one in prepared.references
        ),
        scorers=tuple(_scorers(prepared)),
        sources=tuple(sources),
        fingerprints=fingerprint,
        uri=storage.join(prepared.shard_folder, MANIFEST),
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()})


def _scorers(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield each set of weights that gave a column, with its licence; heads are named by their column."""
    for spec in prepared.specs:
        yield {
            "name": spec.scorer.name,
            "model": spec.scorer.model,
            "pretrained": spec.scorer.pretrained,
            "weights_sha256": spec.weights_sha256,
            "precision": spec.scorer.precision,
            "licence": licence_of(spec.scorer),
        }
    for derived in prepared.derived:
        if isinstance(derived.spec, HeadSpec):
            yield {
                "name": derived.spec.group,
                "model": f"head of {derived.spec.head.scorer}",
                "pretrained": derived.spec.head.weights,
                "weights_sha256": derived.spec.weights_sha256,
                "precision": "fp32",
                "licence": derived.spec.head.licence,
            }


def _columns(prepared: Prepared) -> dict[str, dict[str, str]]:
    """Describe the columns of the shard tables."""
    types = {"key": "string", "offset": "int64", "size": "int64", "image_ext": "string"}
    described = {name: {"type": kind, "group": "shard", "doc": OWN_DOCS[name]} for name, kind in types.items()}
    for name in ("uid", *TABLE_COLUMNS):
        described[name] = {"type": str(COLUMNS[name][0]), "group": "base", "doc": COLUMNS[name][1]}
    for spec in prepared.specs:
        doc = f"cosine of image and text by {spec.scorer.model}"
        described[spec.column] = {"type": "float", "group": spec.column, "doc": doc}
    for derived in prepared.derived:
        for name, kind in derived.spec.columns.items():
            if kind == "float":
                described[name] = {"type": kind, "group": derived.group.name, "doc": derived.spec.doc(name)}
    for name, text in prepared.recipe.select.derive.items():
        described[name] = {"type": "double", "group": "select", "doc": text}
    return described


def track(tracker: Tracker, prepared: Prepared, manifest: Manifest, result: dict[str, Any], page: str) -> None:
    """Log the curation as one run: recipe as parameters, counts as metrics, manifest and page as files."""
    recipe = prepared.recipe
    run_id = tracker.start_run(
        f"{recipe.name}-{manifest.fingerprints['plan']}",
        tags={"sightloom.kind": "curation", "sightloom.manifest_digest": manifest.digest},
        params=flatten(prepared.identity),
    )
    counts = {"rows_in": result["rows_in"], "kept": result["kept"], "failed": result["failed"]}
    metrics = {name: float(value) for name, value in counts.items()}
    metrics |= {f"dropped.{name}": float(value) for name, value in result["dropped"].items()}
    metrics["keep_rate"] = result["kept"] / max(1, result["rows_in"])
    metrics["samples_per_s"] = float(result["samples_per_s"])
    tracker.log_metrics(run_id, metrics, step=0)
    tracker.log_input(run_id, recipe.name, manifest.digest, "curation")
    for uri in (manifest.uri, page):
        with storage.local_copy(uri) as path:
            tracker.log_file(run_id, Path(path))
    tracker.end_run(run_id)

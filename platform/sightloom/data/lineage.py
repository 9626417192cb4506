"""Where shards come from: the manifest with its sources, scorers and columns, and the experiment's run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sightloom
from sightloom import storage
from sightloom.config import flatten
from sightloom.data.dedup.duplicates import OVERLAP
from sightloom.data.fetch import Inputs
from sightloom.data.measure import COLUMNS
from sightloom.data.prepare import MANIFEST, Prepared, describe_source
from sightloom.data.select.decision import Decision
from sightloom.data.shards.manifest import FORMAT, BuiltShard, File, Manifest, Totals
from sightloom.data.shards.pack import TABLE_COLUMNS
from sightloom.data.signals.config import licence_of
from sightloom.data.signals.heads import HeadSpec
from sightloom.data.signals.overlap import BROUGHT

if TYPE_CHECKING:
    from sightloom.tracking import Tracker

OWN_DOCS = {
    "key": "name of the sample's members",
    "offset": "first byte of the sample in its tar",
    "size": "bytes of the whole sample, headers included",
    "image_ext": "extension of the image member",
    "has_preference": "carries a chosen and a rejected answer",
}


def make_manifest(
    prepared: Prepared,
    inputs: Inputs,
    decision: Decision,
    fingerprint: dict[str, Any],
    built: Sequence[BuiltShard],
    files: tuple[File, ...],
) -> Manifest:
    """Put together what the shards hold and how they came about."""
    shards, not_fetched = tuple(one.shard for one in built), inputs.not_fetched
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
    sources = [describe_source(s, files) for s, files in zip(prepared.recipe.source, inputs.per_source, strict=True)]
    manifest = Manifest(
        format=FORMAT,
        name=prepared.recipe.name,
        code={"sightloom": sightloom.__version__, "git": None},
        recipe=prepared.identity,
        shards=shards,
        totals=totals,
        columns=_columns(prepared),
        decontaminated=tuple(
            {"name": reference.name, "removed": decision.dropped.get(OVERLAP + reference.name, 0)}
            for reference in prepared.references
        ),
        scorers=tuple(_scorers(prepared)),
        sources=tuple(sources),
        fingerprints=fingerprint,
        files=files,
        uri=storage.join(prepared.shard_folder, MANIFEST),
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()})


def _scorers(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield each set of weights that gave a column, with its licence; heads are named by their column."""
    for spec in (spec for spec in prepared.specs if not spec.is_masked):
        yield {
            "name": spec.scorer.name,
            "model": spec.scorer.model,
            "pretrained": spec.scorer.pretrained,
            "weights_sha256": spec.weights_sha256,
            "precision": spec.scorer.precision,
            "licence": licence_of(spec.scorer),
        }
    for mask in dict.fromkeys(spec.crop.mask for spec in prepared.specs if spec.crop.mask is not None):
        yield {
            "name": "overlap",
            "model": "text detector",
            "pretrained": mask.detector or BROUGHT,
            "weights_sha256": mask.sha256,
            "precision": "fp32",
            "licence": None if mask.detector else "apache-2.0",
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
    types = {"key": "string", "offset": "int64", "size": "int64", "image_ext": "string", "has_preference": "bool"}
    described = {name: {"type": kind, "group": "shard", "doc": OWN_DOCS[name]} for name, kind in types.items()}
    for name in ("uid", *TABLE_COLUMNS):
        described[name] = {"type": str(COLUMNS[name][0]), "group": "base", "doc": COLUMNS[name][1]}
    for spec in prepared.specs:
        doc = f"cosine of image and text by {spec.scorer.model}" + (", text covered" if spec.is_masked else "")
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

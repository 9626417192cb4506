"""The report of a curation: why each sample stayed or went, as one self-contained page and one JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.dedup.duplicates import OVERLAP, Duplicates, mask_of
from sightloom.data.prepare import Prepared
from sightloom.data.report.cuts import rule_cuts, tops_alone
from sightloom.data.report.gallery import Gallery, pictures
from sightloom.data.report.page import render
from sightloom.data.select.columns import FILE, Scored, mean_separation
from sightloom.data.select.decision import Decision
from sightloom.data.shards.manifest import Manifest
from sightloom.data.sources.chunks import SourceFile

BINS = 40
SIGNALS = ("text_words", "width", "height", "sharpness", "entropy", "flatness", "aspect")
LOW_SEPARATION = 0.7
BEFORE_RULES = ("dup_", OVERLAP)  # how the reasons of deduplication begin


def columns_shown(prepared: Prepared) -> tuple[str, ...]:
    """Return the stored columns that the report reads of every row; the texts of shown rows are read apart."""
    names = ("status", "kind", "domain", "src_pos", "src_offset", "src_size", FILE, *SIGNALS)
    tops = (name for top in prepared.recipe.select.all_tops for name in (top.by, top.per) if name is not None)
    derived = prepared.recipe.select.derive
    return tuple(dict.fromkeys((*names, *prepared.columns_of_scores, *(n for n in tops if n not in derived))))


def write_report(
    prepared: Prepared,
    scored: Scored,
    table: pa.Table,
    duplicates: Duplicates,
    decision: Decision,
    manifest: Manifest,
    files: Sequence[SourceFile],
    seconds: dict[str, float],
) -> str:
    """Write report.json and index.html once for a plan; return the page's address."""
    recipe = prepared.recipe
    folder = storage.join(recipe.out, "report", manifest.fingerprints["plan"])
    page = storage.join(folder, "index.html")
    if storage.exists(page):
        return page
    facts = collect(prepared, scored, table, decision, manifest, seconds)
    per = {top.by: top.per for top in recipe.select.all_tops if top.per is not None}
    found: list[Gallery] = pictures(table, scored, duplicates, decision, files, recipe.report.gallery, per)
    storage.write(storage.join(folder, "report.json"), canonical_json(facts))
    storage.write(page, render(recipe.name, facts, found).encode())
    return page


def collect(
    prepared: Prepared,
    scored: Scored,
    table: pa.Table,
    decision: Decision,
    manifest: Manifest,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return everything that the page says, as plain data."""
    totals, recipe = manifest.totals, prepared.recipe
    scorers = {spec.column: mean_separation(scored.separations[spec.column]) for spec in prepared.specs}
    warnings = [
        f"{name} hardly tells true captions from the next one's here (AUC {value:.2f}): choose another scorer"
        for name, value in scorers.items()
        if value is not None and value < LOW_SEPARATION
    ]
    if not totals.kept:
        warnings.append("nothing was kept: see which rule dropped it")
    alone = {name: count for name, count in totals.dropped.items() if name.startswith(BEFORE_RULES)}
    alone |= decision.alone | tops_alone(table, recipe.select.all_tops)
    rules = recipe.select.all_rules
    cuts = rule_cuts(rules.values())
    columns = [*prepared.columns_of_scores, *recipe.select.derive, *SIGNALS]
    return {
        "name": recipe.name,
        "digest": manifest.digest,
        "rows_in": totals.rows_in,
        "kept": totals.kept,
        "dropped": totals.dropped,
        "alone": alone,
        "order": list(dict.fromkeys([*_statuses(decision, rules), *rules])),
        "failed": totals.failed,
        "warnings": warnings,
        "domains": _domains(table, decision),
        "thresholds": [
            {"by": cut.by, "group": cut.group, "rows": cut.rows, "kept": cut.kept, "threshold": cut.threshold}
            for cut in decision.cuts
        ],
        "histograms": {name: found for name in columns if (found := _histogram(table, name, decision, cuts))},
        "seconds": seconds,
        "samples_per_s": round(totals.rows_in / max(1e-9, sum(seconds.values())), 2),
        "scorers": scorers,
        "shards": [[shard.name, shard.samples, shard.bytes] for shard in manifest.shards],
    }


def _statuses(decision: Decision, rules: dict[str, str]) -> list[str]:
    """Return the reasons that come before the rules: what could not be used, then duplicates."""
    named = [name for name in decision.dropped if name not in rules and not name.startswith("top_")]
    return sorted(named, key=lambda name: (name.startswith(BEFORE_RULES), name))


def _domains(table: pa.Table, decision: Decision) -> dict[str, dict[str, int]]:
    names = np.array(table.column("domain").to_pylist(), dtype=object)
    return {
        str(name): {"rows": int((names == name).sum()), "kept": int(((names == name) & decision.keep).sum())}
        for name in sorted(set(names), key=str)
    }


def _histogram(table: pa.Table, name: str, decision: Decision, rules: dict[str, list[float]]) -> dict[str, Any] | None:
    """Count a column's values in equal bins between its 0.1 and 99.9 percentiles, for all usable rows and the kept."""
    values = pc.cast(table.column(name), pa.float64()).to_numpy(zero_copy_only=False)
    usable = np.isfinite(values) & mask_of(pc.equal(table.column("status"), "ok"))
    if not usable.any():
        return None
    low, high = np.quantile(values[usable], [0.001, 0.999])
    if not high > low:
        return None
    edges = np.linspace(low, high, BINS + 1)
    clipped = np.clip(values, low, high)
    return {
        "low": float(low),
        "high": float(high),
        "rows": np.histogram(clipped[usable], edges)[0].tolist(),
        "kept": np.histogram(clipped[usable & decision.keep], edges)[0].tolist(),
        "cuts": sorted(
            {cut.threshold for cut in decision.cuts if cut.by == name and cut.threshold is not None}
            | set(rules.get(name, ()))
        ),
    }

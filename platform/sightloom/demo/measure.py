"""What curation did about the planted defects, measured against the truth that it never saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.data.ledger import Group, committed, read_chunk
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.demo.corpus.defects import MISMATCH, OK
from sightloom.errors import SightloomError
from sightloom.metrics import auc


def measure_curation(out: str, manifest_uri: str, truth_file: Path, score: str) -> dict[str, Any]:
    """Rank and count the planted mismatched captions.

    Args:
        out: the curation's folder.
        manifest_uri: its finished shards.
        truth_file: `file, key, domain, defect` of every raw record.
        score: the column of the filter network's score, e.g. `clip_filter`.

    Returns:
        `auc`: chance that a true pair scores above a mismatched one; `mismatch_in`, `mismatch_out`: share of mismatched
        captions among raw and kept pairs; `survivors`: kept pairs of each planted defect.
    """
    truth = {(row["file"], row["key"]): row["defect"] for row in pq.read_table(truth_file).to_pylist()}
    scores = _scores(out, manifest_uri, score)
    defects = np.array([truth[key] for key in scores])
    values = np.array(list(scores.values()))
    compared = np.isin(defects, (MISMATCH, OK)) & np.isfinite(values)
    kept = _kept_pairs(manifest_uri)
    survived = [truth[key] for key in kept]
    raw = [defect for (file, _), defect in truth.items() if file.startswith("pairs-")]
    return {
        "auc": auc(values[compared], defects[compared] == OK),
        "mismatch_in": raw.count(MISMATCH) / max(1, len(raw)),
        "mismatch_out": survived.count(MISMATCH) / max(1, len(survived)),
        "pairs_in": len(raw),
        "pairs_kept": len(survived),
        "survivors": {defect: survived.count(defect) for defect in sorted(set(raw))},
    }


def _scores(out: str, manifest_uri: str, score: str) -> dict[tuple[str, str], float]:
    """The score of every raw pair that has one, by (file, key)."""
    prints = read_manifest(manifest_uri).fingerprints["scores"]
    if score not in prints:
        raise SightloomError(f"no scores '{score}' in '{out}'", f"there are: {', '.join(prints)}")
    base, scorer = (
        Group(name, prints[name], storage.join(out, "scores", f"{name}-{prints[name]}")) for name in ("base", score)
    )
    found: dict[tuple[str, str], float] = {}
    for file_id, state in committed(base).items():
        for index in sorted(state.chunks):
            chunk, last = f"{file_id}-{index:05d}", index == state.last
            rows, _ = read_chunk(base, chunk, last)
            scored, _ = read_chunk(scorer, chunk, last)
            names = _names(rows)
            values = scored.column(score).to_pylist()
            found |= {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return found


def _kept_pairs(manifest_uri: str) -> list[tuple[str, str]]:
    table = read_table(read_manifest(manifest_uri), ["kind", "src", "source_key"])
    return _names(table.filter(pc.equal(table.column("kind"), "pair")))


def _names(table: pa.Table) -> list[tuple[str, str]]:
    files = (uri.rsplit("/", 1)[-1] for uri in table.column("src").to_pylist())
    return list(zip(files, table.column("source_key").to_pylist(), strict=True))

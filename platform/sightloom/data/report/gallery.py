"""The pictures of the report: around each cut, of each reason, and copies beside what stayed for them."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from sightloom.data.decode import Undecodable, decode
from sightloom.data.dedup.duplicates import OUTSIDE, Duplicates, numbers
from sightloom.data.select.columns import Scored
from sightloom.data.select.decision import Decision
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import SourceFile, read_positions
from sightloom.errors import SightloomError

PER_REASON = 12
COPIES = 3  # of one group
MAX_BYTES = 12_000_000  # of all pictures in a page of at most 15 MB; base64 and all
MAX_PICTURES = 1500
SIDE = 128
TEXT = 160


@dataclass(frozen=True)
class Picture:
    """One picture: a data address (empty where it cannot be shown), its caption and a note below."""

    data: str
    text: str
    note: str


@dataclass(frozen=True)
class Gallery:
    """A titled row of pictures; `kept` colours it: True stayed, False went, None both."""

    title: str
    kept: bool | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class _Wanted:
    title: str
    kept: bool | None
    rows: list[int]
    notes: list[str]


def pictures(
    table: pa.Table,
    scored: Scored,
    duplicates: Duplicates,
    decision: Decision,
    files: Sequence[SourceFile],
    around: int,
    per: Mapping[str, str],
) -> list[Gallery]:
    """Choose the rows to show, read their pictures again, and shrink them.

    Args:
        table: the columns of all rows that `report.columns_shown` names.
        scored: where the texts of the shown rows are read.
        duplicates: the losers and what stayed for them.
        decision: what stayed and why not.
        files: all source files.
        around: pictures on each side of each cut.
        per: the column that a score's cuts are made by, where they are made by one.
    """
    wanted = [*_around_cuts(table, decision, around, per), *_copies(duplicates), *_by_reason(decision), _kept(decision)]
    budget = MAX_PICTURES
    chosen: list[_Wanted] = []
    for part in wanted:
        rows = part.rows[: max(0, budget)]
        budget -= len(rows)
        if rows:
            chosen.append(_Wanted(part.title, part.kept, rows, part.notes[: len(rows)]))
    rows = sorted({row for part in chosen for row in part.rows})
    shown = _within(_read(table, rows, files), chosen)
    texts = dict(zip(rows, (found["text"] for found in scored.take(rows, ["text"])), strict=True))
    return [
        Gallery(
            part.title,
            part.kept,
            tuple(
                Picture(shown.get(row, ""), str(texts[row] or "")[:TEXT], note)
                for row, note in zip(part.rows, part.notes, strict=True)
            ),
        )
        for part in chosen
    ]


def _around_cuts(table: pa.Table, decision: Decision, around: int, per: Mapping[str, str]) -> list[_Wanted]:
    parts = []
    names = {column: np.array([str(value) for value in table.column(column).to_pylist()]) for column in per.values()}
    for cut in decision.cuts:
        score = numbers(table, cut.by)
        group = np.ones(len(score), bool) if cut.group is None else names[per[cut.by]] == cut.group
        name = f"{cut.by}" + (f" in {cut.group}" if cut.group else "")
        above = np.flatnonzero(decision.keep & group & np.isfinite(score))
        below = np.flatnonzero((decision.reason == f"top_{cut.by}") & group & np.isfinite(score))
        above = above[np.argsort(score[above], kind="stable")][:around]
        below = below[np.argsort(-score[below], kind="stable")][:around]
        for title, kept, rows in ((f"just above the cut of {name}", True, above), ("just below it", False, below)):
            parts.append(_Wanted(title, kept, rows.tolist(), [f"{score[row]:.3f}" for row in rows]))
    return parts


def _copies(duplicates: Duplicates) -> list[_Wanted]:
    """Of each method the first groups: what stays, then its copies."""
    found: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for loser, winner, reason in zip(duplicates.rows, duplicates.winners, duplicates.reasons, strict=True):
        if winner == OUTSIDE:
            continue  # what it matches is no row of this corpus
        groups = found[reason]
        if int(winner) in groups or len(groups) < PER_REASON:
            groups.setdefault(int(winner), []).append(int(loser))
    parts = []
    for reason, groups in sorted(found.items()):
        rows: list[int] = []
        notes: list[str] = []
        for number, (winner, losers) in enumerate(groups.items(), 1):
            shown = losers[:COPIES]
            more = f" ({len(losers)} copies)" if len(losers) > COPIES else ""
            rows += [winner, *shown]
            notes += [f"group {number}: stays{more}", *[f"group {number}: copy, dropped"] * len(shown)]
        parts.append(_Wanted(f"copies: {reason}", None, rows, notes))
    return parts


def _by_reason(decision: Decision) -> list[_Wanted]:
    reasons = [name for name in decision.dropped if not name.startswith(("dup_", "top_"))]
    parts = []
    for reason in reasons:
        rows = np.flatnonzero(decision.reason == reason)[:PER_REASON].tolist()
        parts.append(_Wanted(f"dropped: {reason}", False, rows, [reason] * len(rows)))
    return parts


def _kept(decision: Decision) -> _Wanted:
    rows = np.flatnonzero(decision.keep)
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), 2 * PER_REASON)).astype(int)] if len(rows) else rows
    return _Wanted("kept, from all over the corpus", True, spread.tolist(), [""] * len(spread))


def _within(shown: dict[int, str], chosen: Sequence[_Wanted]) -> dict[int, str]:
    """Leave out the pictures that the page has no room for: the last of each gallery go first."""
    left = MAX_BYTES
    kept: dict[int, str] = {}
    by_place = sorted((place, row) for part in chosen for place, row in enumerate(part.rows))
    uses = Counter(row for _, row in by_place)
    for _, row in by_place:
        size = uses[row] * len(shown.get(row, ""))
        if row not in kept and 0 < size <= left:
            kept[row] = shown[row]
            left -= size
    return kept


def _read(table: pa.Table, rows: list[int], files: Sequence[SourceFile]) -> dict[int, str]:
    """Return data addresses of the rows' pictures; what cannot be read or decoded is left out."""
    ordered = sorted(files, key=lambda file: (file.uri, file.file_id))
    part = table.select(["_file", "src_pos", "src_offset", "src_size"]).take(pa.array(rows, pa.int64()))
    by_file: dict[int, dict[int, tuple[int, int | None, int | None]]] = defaultdict(dict)
    for row, place in zip(rows, part.to_pylist(), strict=True):
        by_file[place["_file"]][row] = (place["src_pos"], place["src_offset"], place["src_size"])
    shown: dict[int, str] = {}
    for number, places in by_file.items():
        row_of = {place[0]: row for row, place in places.items()}
        try:
            for record in read_positions(ordered[number], list(places.values())):
                if record.image is not None and (data := _shrink(record.image)):
                    shown[row_of[record.pos]] = data
        except SightloomError:
            continue  # a file that went away costs its pictures, not the report
    return shown


def _shrink(image: bytes) -> str:
    try:
        picture = decode(image, DecodeLimits()).image
    except Undecodable:
        return ""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()

"""The ledger as people read it, and the proof that it is whole (`sightloom history [--verify]`)."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom.errors import SightloomError
from sightloom.promotion.fold import State, accepted
from sightloom.promotion.reconcile import drift
from sightloom.promotion.states import ModelState
from sightloom.registry import Registry


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was proved, or was not. `trouble`: what does not hold, empty if it holds."""

    what: str
    trouble: str = ""


def history(state: State, model: str = "") -> list[Mapping[str, Any]]:
    """The ledger's lines as plain data, oldest first; of one model, or of all."""
    lines: list[Mapping[str, Any]] = []
    for line in state.lines:
        event = line.event
        if event is None or (model and event.model not in (model, "")):
            continue
        lines.append(
            {
                "number": line.number,
                "outcome": line.outcome,
                "why": line.why,
                "kind": event.kind,
                "model": event.model,
                "version": event.version,
                "args": dict(event.args),
                "actor": event.actor,
                "at": event.at,
                "reason": event.reason,
                "evidence": dict(event.evidence),
                "digest": event.digest,
            }
        )
    return lines


def verify(state: State, registry: Registry, cache: Path) -> list[Check]:
    """Prove what a folded ledger rests on: reports are those of their verdicts, aliases and files those that it names.

    The chain itself was proved by folding it: a ledger that is edited or cut does not fold.
    """
    done = accepted(state.lines)
    checks = [Check(f"chain: {len(done)} accepted of {len(state.lines)} entries, head {state.head[:12]}")]
    for line in done:
        event = line.event
        if event is not None and event.kind == "verdict" and event.evidence.get("report_sha256"):
            what = f"event {line.number}: report of run {event.evidence['run_id']}"
            checks.append(Check(what, _report(event.evidence, registry)))
    for name, its in sorted(state.models.items()):
        moved = drift(its, registry.aliases(name))
        trouble = ", ".join(
            f"{alias} {found or 'none'} instead of {wanted or 'none'}" for alias, (found, wanted) in moved.items()
        )
        checks.append(Check(f"aliases of {name}", trouble))
        for alias, version in its.aliases().items():
            checks.append(Check(f"files of {name}:{version} ({alias})", _files(name, version, its, registry, cache)))
    return checks


def _report(evidence: Mapping[str, str], registry: Registry) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            page = registry.run_file(evidence["run_id"], "report.html", Path(folder))
        except SightloomError as error:
            return error.message
        found = hashlib.sha256(page.read_bytes()).hexdigest()
    return "" if found == evidence["report_sha256"] else "report.html is not the one that the verdict names"


def _files(name: str, version: int, its: ModelState, registry: Registry, cache: Path) -> str:
    try:
        found = registry.resolve(f"{name}:{version}")
        pinned = its.digests.get(version, found.digest)
        if found.digest != pinned:
            return f"the tag sightloom.digest says {found.digest[:12]}…, the ledger {pinned[:12]}…"
        registry.materialize(found, cache)
    except SightloomError as error:
        return error.message
    return ""

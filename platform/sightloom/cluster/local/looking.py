"""How a stack stands: every part with its state and, where it is not well, the reason."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom.cluster.local import state as keeping
from sightloom.cluster.local.parts import Part, parts_of
from sightloom.cluster.local.state import Running


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part stands: `running`, `ill` (alive, but its probe fails), `dead`, or `absent` (never started)."""

    name: str
    state: str
    reason: str
    pid: int | None = None
    address: str = ""
    seconds: float = 0.0
    log: str = ""


@dataclass(frozen=True, slots=True)
class StackStatus:
    """A stack; `seconds` is how long the command took."""

    folder: str
    parts: tuple[PartStatus, ...]
    addresses: dict[str, str]
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        """Whether everything that was started runs."""
        return bool(self.parts) and all(part.state in ("running", "absent") for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        parts = {
            part.name: {"state": part.state, "reason": part.reason, "pid": part.pid, "address": part.address,
                        "seconds": round(part.seconds, 1), "log": part.log}
            for part in self.parts
        }  # fmt: skip
        return {
            "folder": self.folder, "well": self.well, "parts": parts, "addresses": self.addresses,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def status(folder: Path, seconds: float = 0.0) -> StackStatus:
    """How every part stands now."""
    folder = folder.absolute()
    found = keeping.read_state(folder)
    if found is None:
        return StackStatus(str(folder), (), {})
    options, parts = found.options, parts_of(folder, found.temp, found.options)
    addresses = {"mlflow": options.tracking_uri, "ray": options.dashboard, "endpoint": options.endpoint,
                 "prometheus": options.prometheus}  # fmt: skip
    shown = [_look(name, running, parts.get(name), addresses[name]) for name, running in found.parts.items()]
    shown += [PartStatus(name, "absent", why) for name, why in found.absent.items()]
    running = {part.name: part.address for part in shown if part.state == "running"}
    return StackStatus(str(folder), tuple(shown), running, seconds)


def _look(name: str, running: Running, part: Part | None, address: str) -> PartStatus:
    process = keeping.process_of(running)
    if process is None:
        reason = f"its process {running.pid} is gone; its log ends: {last_line(Path(running.log))}"
        return PartStatus(name, "dead", reason, None, address, 0.0, running.log)
    reason = part.probe() if part is not None else "its program is not on the PATH any more"
    seconds = time.time() - running.began
    return PartStatus(name, "ill" if reason else "running", reason, running.pid, address, seconds, running.log)


def last_line(log: Path) -> str:
    """What a part wrote last."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it wrote none"
    return lines[-1][:300] if lines else "nothing"

"""Processes of real engines: where vLLM is, what runs below a guard and what is left of it."""

import contextlib
import sys
from pathlib import Path

import pytest

OWN_VLLM = Path(sys.prefix).parent / ".tools" / "vllm" / "bin" / "python"


def vllm_python() -> str:
    """The interpreter with vLLM; the test is skipped where there is none."""
    if not OWN_VLLM.exists():
        pytest.skip("there is no vLLM here: `make vllm` puts it at .tools/vllm")
    return str(OWN_VLLM)


def group_of(pid: int) -> dict[int, str]:
    """The processes below the guard with this id, and their command lines."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            with contextlib.suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                todo.append(child)
    return found


def survivors(before: dict[int, str]) -> list[int]:
    """Those of some processes that still run; a number that another program has by now is not counted."""
    found = []
    for pid, line in before.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") == line:
                found.append(pid)
    return found

"""The house's own rules (what ruff, mypy and import-linter do not see)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "platform").rglob("*.py")) + sorted((ROOT / "pipelines").rglob("*.py"))
LONGER_FOR_A_REASON: dict[str, str] = {}  # path -> why it is better whole


def test_the_standard_library_keeps_its_platform_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; print(platform.python_version())"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_can_be_read_at_once(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    name = str(path.relative_to(ROOT))
    assert text.count("\n") <= 300 or name in LONGER_FOR_A_REASON, "over 300 lines: split it by noun"


def test_locks_hold_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text and "--index-url" not in text
        pinned = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
        assert len(pinned) > 100 and text.count("--hash=sha256:") >= len(pinned)

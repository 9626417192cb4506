"""The image's way: a wheel, installed, away from the checkout, with pipelines/ beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel that the Dockerfile's last step builds."""
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        pytest.skip("uv is neither on the path nor at .tools/bin/uv (`make test` puts it there)")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "platform", source / "platform", ignore=shutil.ignore_patterns("__pycache__"))
    made = subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(source)], capture_output=True, text=True
    )
    if made.returncode and "hatchling" in made.stderr:
        pytest.skip(f"no hatchling to build with: {made.stderr[-200:]}")
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("sightloom-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "100"}
    shown = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_the_command_line_and_the_pipelines_run_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    where = run(installed, tmp_path, "-c", "import sightloom; print(sightloom.__file__)")
    assert where.startswith(str(installed))
    assert "submit" in run(installed, tmp_path, "-m", "sightloom.cli", "--help")
    assert "RECIPE" in run(installed, tmp_path, "pipelines/curate.py", "--help").upper()


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    inside = {
        path.relative_to(installed / "sightloom") for path in (installed / "sightloom").rglob("*") if path.is_file()
    }
    tracked = subprocess.run(
        ["git", "ls-files", "platform/sightloom"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {Path(name).relative_to("platform/sightloom") for name in tracked} <= inside

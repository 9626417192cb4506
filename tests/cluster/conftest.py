import subprocess
from pathlib import Path

import pytest

RECIPE = """
name: tiny
out: out/data
source: [{kind: webdataset, uri: "raw/*.tar"}]
"""
JOB = """
name: curate-tiny
kind: curate
config: pipelines/recipes/tiny.yaml
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with a package, a recipe and a job."""
    root = tmp_path / "checkout"
    for name, text in {
        "platform/sightloom/__init__.py": '"""Tiny."""\n',
        "pipelines/curate.py": "print('curated')\n",
        "pipelines/recipes/tiny.yaml": RECIPE,
        "jobs/curate-tiny.yaml": JOB,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    return root

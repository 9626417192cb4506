import subprocess
import sys
from pathlib import Path

import pytest

from sightloom.cli import VERBS

SIGHTLOOM = Path(sys.executable).parent / "sightloom"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SIGHTLOOM, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_help_names_every_verb_without_loading_torch() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert all(verb in shown.stdout for verb in VERBS)
    code = "import sys, sightloom.cli; print('torch' in sys.modules, 'ray' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False", "False"]


def test_a_misspelt_verb_names_the_nearest_and_leaves_with_2() -> None:
    shown = run("cruate")
    assert shown.returncode == 2
    assert "did you mean 'curate'" in shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.parametrize("arguments", [("curate", "no-such-recipe.yaml"), ("train", "no-such-curriculum.yaml")])
def test_a_missing_file_is_told_in_words(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments, "--json")
    assert shown.returncode == 2
    assert arguments[1] in shown.stderr and "Traceback" not in shown.stderr
    assert shown.stdout == ""


def test_with_json_only_the_result_reaches_stdout() -> None:
    code = (
        "from sightloom.cli import console\n"
        "with console.claimed_stdout():\n"
        "    print('a library speaks'); console.emit({'rows': 1}, True, lambda screen: None)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == '{"rows": 1}\n' and "a library speaks" in shown.stderr

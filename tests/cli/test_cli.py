import json
import subprocess
import sys
from pathlib import Path

import pytest

from sightloom import runtime
from sightloom.cli import VERBS, console

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


HEAVY = (
    "import sys, atexit; from sightloom.cli import main; sys.argv[0] = 'sightloom'\n"
    "atexit.register(lambda: print(sorted({'torch', 'ray', 'open_clip', 'mlflow'} & set(sys.modules))))\n"
    "main()"
)


def test_a_plan_loads_no_machinery(tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "captions.jsonl").write_text('{"file_name": "a.jpg", "text": "a"}\n')
    scorers = [
        {"name": "tiny", "model": f"local-dir:{tiny_clip}", "embeddings": True},
        {"name": "random", "model": "ViT-B-32"},
        {"name": "file", "model": "ViT-B-32", "pretrained": str(tiny_clip / "open_clip_model.safetensors")},
    ]
    recipe = {"name": "p", "out": str(tmp_path / "out"), "source": [{"kind": "folder", "uri": str(tmp_path / "raw")}],
              "score": {"clip": scorers, "banks": [{"name": "nsfw", "scorer": "tiny"}]},
              "dedup": {"perceptual": {}, "semantic": {"scorer": "tiny"}}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", HEAVY, "curate", str(tmp_path / "recipe.yaml"), "--plan", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    plan, loaded = shown.stdout.strip().splitlines()
    assert json.loads(plan)["rows"] == 1 and loaded == "[]"


@pytest.mark.parametrize(
    ("verb", "text", "key"),
    [
        ("curate", "name: p\nout: o\nsource: [{kind: folder, uri: raw}]\ndedupe: {exact: true}\n", "dedup"),
        ("score", "name: p\nout: o\nsource: [{kind: folder, uri: raw}]\nscores: {}\n", "score"),
        ("train", "runs: {name: x}\n", "run"),
    ],
)
def test_a_misspelt_key_is_answered_before_the_machinery_is_loaded(
    tmp_path: Path, verb: str, text: str, key: str
) -> None:
    (tmp_path / "given.yaml").write_text(text)
    command = [sys.executable, "-c", HEAVY, verb, str(tmp_path / "given.yaml")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 2 and f"did you mean '{key}'" in shown.stderr
    assert shown.stdout.split() == ["[]"]


def test_the_ray_that_verbs_start_by_default_is_the_local_one() -> None:
    assert console.LOCAL == runtime.LOCAL

"""`sightloom serve --follow`: what must be so before a release manager is started, and what it is told."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sightloom.cli import cli, serve
from sightloom.promotion.config import ManagerConfig, RayServiceWriter
from sightloom.serving.clip import ClipSettings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out/model", "--on", "ray", "--ray", "auto"], "serves what the ledger says"),
        (["sightloom:3", "--on", "ray", "--ray", "auto"], "serves what the ledger says"),
        (["sightloom@champion", "--name", "other", "--on", "ray", "--ray", "auto"], "under a name of its own"),
        (["sightloom@champion"], "a Ray with a dashboard"),
        (["sightloom@champion", "--on", "ray", "--ray", "local"], "a Ray with a dashboard"),
        (["sightloom@champion", "--on", "ray", "--ray", "auto", "--clip", "ViT-B-32,openai"], "has no name"),
        (["sightloom@champion", "--on", "ray", "--ray", "auto", "--host", "0.0.0.0"], "without keys"),
        (["sightloom@champion", "--on", "ray", "--ray", "auto", "--rayservice", "nano"], "write NAMESPACE/NAME"),
        (["sightloom@champion", "--on", "ray", "--ray", "127.0.0.1:1"], "no Ray answers at '127.0.0.1:1'"),
    ],
)
def test_what_cannot_follow_the_ledger_is_told(words: list[str], said: str) -> None:
    shown = CliRunner().invoke(cli, ["serve", *words, "--follow"])
    assert shown.exit_code == 2 and said in " ".join(shown.output.split()), shown.output


def test_the_manager_is_told_of_open_clip_models_as_nodes_find_them_and_of_a_rayservice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[ManagerConfig] = []
    monkeypatch.setattr(serve, "follow_until_asked", lambda config, ray, as_json: told.append(config))
    monkeypatch.chdir(tmp_path)
    words = ["serve", "sightloom@champion", "--on", "ray", "--ray", "auto", "--follow"]
    words += ["--clip", "b=ViT-B-32,openai", "--clip", "own=local-dir:models/own", "--rayservice", "ml/nano"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert told[0].writer == RayServiceWriter(namespace="ml", name="nano") and told[0].proxies == "EveryNode"
    assert told[0].clips == {
        "b": ClipSettings(model="ViT-B-32", pretrained="openai"),
        "own": ClipSettings(model=f"local-dir:{tmp_path}/models/own"),
    }

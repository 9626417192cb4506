"""`sightloom serve --follow`: what must be so before a release manager is started."""

import pytest
from typer.testing import CliRunner

from sightloom.cli import cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out/model", "--on", "ray", "--ray", "auto"], "serves what the ledger says"),
        (["sightloom:3", "--on", "ray", "--ray", "auto"], "serves what the ledger says"),
        (["sightloom@champion", "--name", "other", "--on", "ray", "--ray", "auto"], "under a name of its own"),
        (["sightloom@champion"], "a Ray with a dashboard"),
        (["sightloom@champion", "--on", "ray", "--ray", "local"], "a Ray with a dashboard"),
        (["sightloom@champion", "--on", "ray", "--ray", "auto", "--clip", "b=ViT-B-32,openai"], "--clip means nothing"),
        (["sightloom@champion", "--on", "ray", "--ray", "auto", "--host", "0.0.0.0"], "without keys"),
        (["sightloom@champion", "--on", "ray", "--ray", "127.0.0.1:1"], "no Ray answers at '127.0.0.1:1'"),
    ],
)
def test_what_cannot_follow_the_ledger_is_told(words: list[str], said: str) -> None:
    shown = CliRunner().invoke(cli, ["serve", *words, "--follow"])
    assert shown.exit_code == 2 and said in " ".join(shown.output.split()), shown.output

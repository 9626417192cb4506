from pathlib import Path

import pytest

from sightloom.cluster.local.options import StackOptions, read_ports
from sightloom.cluster.local.parts import parts_of
from sightloom.errors import UserMistake
from sightloom.serving.clip import ClipSettings, clip_settings


def test_ports_are_named_and_the_others_stay() -> None:
    ports = read_ports(["endpoint=8001", "mlflow=5001"])
    assert (ports.endpoint, ports.mlflow, ports.dashboard) == (8001, 5001, 8265)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("endpiont=8001", "did you mean 'endpoint'"),
        ("endpoint", "not of the form NAME=PORT"),
        ("endpoint=70000", "65535"),
        ("endpoint=8265", "port 8265 is given to dashboard and to endpoint"),
    ],
)
def test_a_port_that_cannot_be_is_told(word: str, said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        read_ports([word])


def test_a_database_with_a_password_is_refused_and_the_password_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="PGPASSWORD"):
        StackOptions(database="postgresql://ann:hunter2@host/mlflow")
    assert StackOptions(database="postgresql://ann@host/mlflow").database.endswith("/mlflow")


def test_open_clip_models_reach_the_endpoint_by_their_words(tmp_path: Path) -> None:
    clips = {
        "b": ClipSettings(model="ViT-B-32", pretrained="openai"),
        "own": ClipSettings(model="local-dir:/models/own"),
    }
    options = StackOptions(clips=clips)
    command = parts_of(tmp_path, str(tmp_path), options)["endpoint"].command
    words = [command[place + 1] for place, word in enumerate(command) if word == "--clip"]
    assert clip_settings(words) == clips
    assert StackOptions.model_validate_json(options.model_dump_json()) == options
    assert "--clip" not in parts_of(tmp_path, str(tmp_path), StackOptions())["endpoint"].command

"""`sightloom keys`: what it writes opens the endpoint, and what it revokes does not."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.serving.auth import KeyRing
from sightloom.serving.errors import ApiError


def keys(*words: str, code: int = 0) -> dict[str, object]:
    outcome = CliRunner().invoke(cli, ["keys", *words, "--json"])
    assert outcome.exit_code == code, outcome.output
    return dict(json.loads(outcome.stdout)) if code == 0 else {"error": outcome.stderr}


def test_a_key_opens_until_it_is_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    asked = ("create", "--file", str(file))
    one = keys(*asked, "--scope", "infer", "--scope", "pin", "--rpm", "7", "--tpm", "0", "--days", "2")
    two = keys(*asked)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(one["key"]) not in file.read_text()
    monkeypatch.setattr("sightloom.serving.auth._RELOAD_S", 0.0)
    ring = KeyRing(str(file))
    entry = ring.identify(f"Bearer {one['key']}")
    assert (entry.scopes, entry.rpm, entry.tpm) == ({"infer", "pin"}, 7, None) and entry.expires_at is not None
    assert ring.identify(f"Bearer {two['key']}").rpm == 600
    listed = keys("list", "--file", str(file))["keys"]
    assert [its["id"] for its in listed] == [one["id"], two["id"]]  # type: ignore[attr-defined]
    assert "sha256" not in json.dumps(listed)
    keys("revoke", str(one["id"]), "--file", str(file))
    with pytest.raises(ApiError, match="valid key"):
        ring.identify(f"Bearer {one['key']}")
    assert ring.identify(f"Bearer {two['key']}").id == two["id"]


def test_mistakes_are_told_and_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    assert "no scope 'root'" in str(keys("create", "--file", str(file), "--scope", "root", code=2)["error"])
    assert "No such file" in str(keys("revoke", "abc", "--file", str(file), code=2)["error"])
    assert not file.exists()
    file.write_text("{")
    assert "no list of keys" in str(keys("create", "--file", str(file), code=2)["error"])
    assert file.read_text() == "{"
    assert "no folder" in str(keys("create", "--file", str(tmp_path / "a" / "b"), code=2)["error"])

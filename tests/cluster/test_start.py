import subprocess
import sys
from pathlib import Path

import pytest

from sightloom.cluster.start import prepared
from sightloom.errors import UserMistake


def test_secrets_come_from_files_and_the_node_and_the_program_keeps_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    words = [f"KEY={tmp_path / 'key'}", "SET", "--in", str(tmp_path), "--", "python", "x.py", "--", "a=b"]
    program, folder, environment = prepared(words, {"SET": "1"})
    assert (program, folder) == (["python", "x.py", "--", "a=b"], str(tmp_path))
    assert environment == {"SET": "1", "KEY": "abc"}


def test_a_missing_file_and_a_variable_that_is_not_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="secret KEY: this node has no file"):
        prepared([f"KEY={tmp_path}/none", "--", "true"], {})
    with pytest.raises(UserMistake, match="secret KEY: this node does not set"):
        prepared(["KEY", "--", "true"], {})


def test_it_becomes_the_program_in_the_codes_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sightloom.cluster.start", "--in", str(tmp_path), "--", "pwd"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(tmp_path)

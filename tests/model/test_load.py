from pathlib import Path

import pytest
import torch

from sightloom.errors import UserMistake
from sightloom.model.load import fetch, load


def test_a_folder_is_used_where_it_is(nano_folder: Path, tmp_path: Path) -> None:
    assert fetch(str(nano_folder), tmp_path) == nano_folder
    assert load(str(nano_folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_address_is_copied_once(nano_folder: Path, tmp_path: Path) -> None:
    copy = fetch(nano_folder.as_uri(), tmp_path)
    assert copy is not None and copy.parent == tmp_path
    assert {path.name: path.stat().st_size for path in copy.iterdir()} == {
        path.name: path.stat().st_size for path in nano_folder.iterdir()
    }
    stamp = (copy / "config.json").stat().st_mtime_ns
    assert fetch(nano_folder.as_uri(), tmp_path) == copy and (copy / "config.json").stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [copy]


def test_what_is_no_model_is_a_user_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"has no config\.json"):
        load(str(tmp_path))
    with pytest.raises(UserMistake, match="no model folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(UserMistake, match="float31"):
        load(str(tmp_path), dtype="float31")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserMistake, match="cannot load"):
        load(str(tmp_path))

import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from sightloom.cluster.jobspec import Code, JobSpec
from sightloom.cluster.package import pack, publish
from sightloom.errors import UserMistake


def spec(**code: tuple[str, ...]) -> JobSpec:
    return JobSpec(name="c", kind="curate", config="pipelines/recipes/tiny.yaml", code=Code(**code))


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_the_same_tree_gives_the_same_bytes_and_another_one_another_address(checkout: Path, tmp_path: Path) -> None:
    first = pack(spec(), checkout)
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    for file in copy.rglob("*.py"):
        os.utime(file, (1, 1))
    assert pack(spec(), copy) == first
    (copy / "pipelines/curate.py").write_text("print('changed')\n")
    changed = pack(spec(), copy)
    assert changed.code.uri != first.code.uri and changed.module.uri == first.module.uri


def test_the_module_is_the_inner_folder_and_git_decides_what_else_travels(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not git's")
    package = pack(spec(), checkout)
    assert names(package.module.data) == ["sightloom/__init__.py"]
    assert names(package.code.data) == ["jobs/curate-tiny.yaml", "pipelines/curate.py", "pipelines/recipes/tiny.yaml"]
    assert "notes.txt" in names(pack(spec(include=("notes.txt",)), checkout).code.data)
    assert "jobs/curate-tiny.yaml" not in names(pack(spec(exclude=("jobs",)), checkout).code.data)


def test_a_config_that_would_not_travel_is_an_error(checkout: Path) -> None:
    subprocess.run(["git", "rm", "-q", "--cached", "pipelines/recipes/tiny.yaml"], cwd=checkout, check=True)
    with pytest.raises(UserMistake, match="would not travel"):
        pack(spec(), checkout)
    assert pack(spec(include=("pipelines",)), checkout).code.files == 3


def test_over_the_limit_the_ten_largest_files_are_named(checkout: Path) -> None:
    (checkout / "data").mkdir()
    for number in range(12):
        (checkout / f"data/{number:02}.bin").write_bytes(os.urandom(20_000 + 1000 * number))
    with pytest.raises(UserMistake) as caught:
        pack(spec(include=("data",)), checkout, limit=200_000)
    said = str(caught.value)
    assert [f"data/{number:02}.bin" in said for number in range(12)] == [False, False, *[True] * 10]
    assert said.index("data/11.bin") < said.index("data/02.bin")


def test_a_missing_include_and_a_folder_without_git_are_told(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"code\.include 'nothing'"):
        pack(spec(include=("nothing",)), checkout)
    with pytest.raises(UserMistake, match=r"code\.include '\.\./"):
        pack(spec(include=("../",)), checkout)
    with pytest.raises(UserMistake, match="no git checkout"):
        pack(spec(), tmp_path)


def test_published_zip_files_have_one_folder_at_the_top(checkout: Path, tmp_path: Path) -> None:
    package = pack(spec(), checkout, top="package")
    code, module = publish(package, str(tmp_path / "store"))
    assert names(Path(module).read_bytes()) == ["package/sightloom/__init__.py"]
    assert publish(package, str(tmp_path / "store")) == (code, module)

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.conftest import JOB

from sightloom.cluster.jobspec import JobSpec, read_job
from sightloom.config import load
from sightloom.data.recipe import Recipe
from sightloom.errors import UserMistake

ROOT = Path(__file__).parent.parent.parent
TRAIN = {"name": "t", "kind": "train", "config": "pipelines/curricula/nano.yaml"}


def job(tmp_path: Path, **keys: Any) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**TRAIN, **keys}))
    return path


def refused(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(UserMistake) as caught:
        read_job(job(tmp_path, **keys), root=ROOT)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"retires": {"max": 2}}, "did you mean 'retries'"),
        ({"resources": {"driver": {"cpu": 1}}}, "did you mean 'cpus'"),
        ({"name": "Train_Nano"}, "name"),
        ({"name": "a" * 31}, "name"),
        ({"kind": "trian"}, "'train'"),
        ({"config": ""}, "config is what"),
        ({"kind": "command", "config": ""}, "argv is required"),
        ({"kind": "serve", "config": "", "argv": ["m"], "set": {"a": 1}}, "there is none"),
        ({"secrets": {"A": {"secret": "s3"}}}, "either {secret, key} or {file}"),
        ({"secrets": {"A": {"secret": "s", "key": "k", "file": "f"}}}, "either {secret, key} or {file}"),
        ({"secrets": {"A": {"file": "a$(id)"}}}, "file"),
        ({"env": {"A": "1"}, "secrets": {"A": {"file": "f"}}}, "in env and in secrets"),
        ({"resources": {"workers": [{"group": "g", "min": 3, "max": 2}]}}, "min 3 is above max 2"),
        ({"code": {"mode": "uri"}}, "needs working_dir"),
        ({"schedule": {"cron": "every night"}}, "no cron line"),
        ({"config": "../elsewhere.yaml"}, "leaves the checkout"),
        ({"config": "pipelines/curricula/none.yaml"}, "none.yaml"),
    ],
)
def test_a_bad_job_is_refused_and_the_key_is_named(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, **keys)


def test_the_config_is_validated_by_its_verbs_own_class_with_the_jobs_overrides(tmp_path: Path) -> None:
    said = refused(tmp_path, set={"run.sede": 7})
    assert "run" in said and "did you mean 'seed'" in said
    assert read_job(job(tmp_path, set={"run.seed": 7}), root=ROOT).overrides == ["run.seed=7"]


def test_overrides_are_read_back_as_the_values_they_were(tmp_path: Path) -> None:
    values = {"name": "007", "out": "s3://b/c", "seed": 3, "source": [{"kind": "parquet", "uri": "a: b"}]}
    spec = JobSpec(name="c", kind="curate", config="r.yaml", set=values)
    (tmp_path / "r.yaml").write_text("source: []\nname: x\nout: y\n")
    recipe = load(Recipe, tmp_path / "r.yaml", spec.overrides)
    assert (recipe.name, recipe.out, recipe.seed) == ("007", "s3://b/c", 3)
    assert recipe.source[0].uri == "a: b"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"),
        ("DB_PASSWORD", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("SETTING", "kJ8s0dQw4LmZx7Pq2RtYb5Nc"),
        ("SETTING", "9f86d081884c7d659a2feaa0c55ad015"),
        ("MLFLOW_TRACKING_URI", "https://ann:hunter2@mlflow.example"),
        ("PROXY", "http://ann@proxy.example"),
        ("SETTING", "sk-" + "abcd1234" * 3),
        ("SETTING", "AK" + "IAABCDEFGHIJKLMNOP"),
    ],
)
def test_a_secret_in_plain_env_is_refused_and_not_repeated(tmp_path: Path, name: str, value: str) -> None:
    said = refused(tmp_path, env={name: value})
    assert f"env.{name}" in said and "secrets:" in said
    assert len(value) == 1 or value not in said
    assert read_job(job(tmp_path, env={name: value}, allow_plain=[name]), root=ROOT).env == {name: value}


def test_a_secret_in_a_jobs_words_is_refused_and_not_repeated(tmp_path: Path) -> None:
    key = "hf_" + "abcdefghij" * 3
    for keys in ({"argv": ["--token", key]}, {"set": {"data.manifest": "https://ann:hunter2@h/manifest.json"}}):
        said = refused(tmp_path, **keys)
        assert "of the job's command" in said and "secrets:" in said and key not in said and "hunter2" not in said


@pytest.mark.parametrize(
    "value",
    ["1", "s3://bucket/shards/v3/manifest.json", "http://mlflow:5000", "out/train-nano-20261125/stage-1", "cuda:0"],
)
def test_ordinary_values_pass(tmp_path: Path, value: str) -> None:
    assert read_job(job(tmp_path, env={"SETTING": value}), root=ROOT).env == {"SETTING": value}


def test_a_jobs_words_are_its_verbs_program_config_and_overrides(tmp_path: Path) -> None:
    train = read_job(job(tmp_path, set={"run.seed": 7}, argv=["--out", "out/t"]), root=ROOT)
    assert train.argv_list == [
        "python", "pipelines/train.py", "pipelines/curricula/nano.yaml", "--out", "out/t", "--set", "run.seed=7",
    ]  # fmt: skip
    release = read_job(job(tmp_path, kind="release", config="pipelines/gates/demo.yaml", argv=["m:1"]), root=ROOT)
    assert release.argv_list == ["python", "pipelines/release.py", "m:1", "--gate", "pipelines/gates/demo.yaml"]


def test_an_override_of_the_config_keeps_its_dots_and_replaces_the_jobs_own(checkout: Path) -> None:
    job = checkout / "jobs/curate-tiny.yaml"
    job.write_text(JOB + 'set: {source.0.uri: "/data/*.tar", out: /data/out}\n')
    words = ["set.source.0.uri=s3://pool/raw/*.tar", "set.score.chunk_rows=64", "retries.max=2"]
    spec = read_job(job, words, checkout)
    assert spec.set == {"source.0.uri": "s3://pool/raw/*.tar", "out": "/data/out", "score.chunk_rows": 64}
    assert spec.retries.max == 2
    with pytest.raises(UserMistake, match="did you mean 'chunk_rows'"):
        read_job(job, ["set.score.chunk_rws=64"], checkout)
    with pytest.raises(UserMistake, match="not of the form"):
        read_job(job, ["set.out"], checkout)

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from sightloom.cluster.start import prepared, redactor
from sightloom.errors import UserMistake

PLATFORM = Path(__file__).parents[2] / "platform"


def started(*words: str, **environment: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(PLATFORM), "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "sightloom.cluster.start", *words],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_secrets_come_from_files_and_the_node_and_the_program_keeps_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    words = [f"KEY={tmp_path / 'key'}", "SET", "--in", str(tmp_path), "--", "python", "x.py", "--", "a=b"]
    start = prepared(words, {"SET": "1", "OTHER": "2"})
    assert (start.program, start.folder) == (["python", "x.py", "--", "a=b"], str(tmp_path))
    assert start.environment == {"SET": "1", "KEY": "abc", "OTHER": "2"}
    assert start.secrets == ("abc", "1")


def test_a_missing_file_and_a_variable_that_is_not_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="secret KEY: this node has no file"):
        prepared([f"KEY={tmp_path}/none", "--", "true"], {})
    with pytest.raises(UserMistake, match="secret KEY: this node does not set"):
        prepared(["KEY", "--", "true"], {})


def test_it_runs_the_program_in_the_codes_folder_and_leaves_with_its_exit_code(tmp_path: Path) -> None:
    out, _ = (process := started("--in", str(tmp_path), "--", "sh", "-c", "pwd; echo late >&2; exit 75")).communicate()
    assert out.split() == [str(tmp_path), "late"] and process.returncode == 75


def test_a_program_that_was_killed_or_is_not_there_has_an_exit_code_that_says_so() -> None:
    (process := started("--", "sh", "-c", "kill -9 $$")).communicate()
    assert process.returncode == 137
    _, err = (process := started("--", "no-such-program")).communicate()
    assert process.returncode == 2 and "'no-such-program' cannot be started" in err


def test_a_request_to_end_reaches_the_program_and_its_death_takes_the_program_along() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('on', flush=True); time.sleep(60)"
    )
    process = started("--", sys.executable, "-c", code)
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 3
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = started("--", sys.executable, "-c", code)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=20)
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_values_of_secrets_credentials_and_tokens_are_taken_out_of_every_line() -> None:
    clean = redactor(("hunter2-hunter2", "a", "hunter2"))
    line = b"key hunter2-hunter2 and hunter2, a url s3://ann:pw@host/x, Authorization: Bearer sl-abc.def\n"
    assert clean(line) == (b"key [secret] and [secret], a url s3://[secret]@host/x, Authorization: Bearer [secret]\n")


def test_the_log_is_kept_in_mlflow_under_the_jobs_name_without_its_secrets(mlflow_uri: str, tmp_path: Path) -> None:
    metadata = {"job_submission_id": "n-00000000-1", "sightloom.kind": "command", "mlflow.experiment": "kept-logs",
                "mlflow.tag.team": "vision"}  # fmt: skip
    config = json.dumps({"metadata": metadata})
    process = started(
        "KEY", "--", "sh", "-c", "echo the key is $KEY; exit 4",
        KEY="hunter2-hunter2", MLFLOW_TRACKING_URI=mlflow_uri, RAY_JOB_CONFIG_JSON_ENV_VAR=config,
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("the key is [secret]\n", 4), err
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("kept-logs")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("n-00000000-1", "FAILED")
    assert {"team": "vision", "sightloom.exit_code": "4"}.items() <= run.data.tags.items()
    kept = client.download_artifacts(run.info.run_id, "driver.log", str(tmp_path))
    assert Path(kept).read_text() == "the key is [secret]\n"


def test_a_store_that_is_away_costs_the_archive_and_not_the_job() -> None:
    process = started(
        "--", "sh", "-c", "echo done", MLFLOW_TRACKING_URI="http://127.0.0.1:1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("done\n", 0)
    assert "the log is not in MLflow" in err

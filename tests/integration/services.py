"""The services around a stack, as real programs: Debian's Postgres, and an S3-protocol server."""

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

PASSWORD = "not-a-secret-of-anybody"


def free_ports(count: int) -> list[int]:
    """Ports above those that Ray's workers take (10002 to 19999) and below those of outgoing connections."""
    found = []
    for number in range(20_100 + os.getpid() % 6000, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) != 0:
                found.append(number)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A Postgres of its own with a database `mlflow`, asking for PASSWORD; yields its address without it."""
    pytest.importorskip("psycopg2", reason="psycopg2 (the extra `server`) is not installed")
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    found = shutil.which("initdb") or (f"{folders[-1]}/initdb" if folders else None)
    if found is None:
        pytest.skip("Postgres is not installed (apt-get install postgresql)")
    programs = Path(found).resolve().parent
    user = None
    if os.getuid() == 0:  # Postgres does not run as root
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("Postgres does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="slpg-"))
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    (port,) = free_ports(1)
    data = folder / "data"
    words = ["-D", str(data), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={folder}/password", "--no-sync"]
    subprocess.run([programs / "initdb", *words], user=user, cwd=folder, check=True, capture_output=True)
    server = subprocess.Popen(
        [programs / "postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-F"],
        user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        make = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
        until = time.monotonic() + 30
        while subprocess.run(make, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True).returncode:
            assert time.monotonic() < until and server.poll() is None, "Postgres did not start"
            time.sleep(0.2)
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """An S3-protocol server in its own process; yields the environment that reaches it."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(address, trust_env=False)
                break
            assert time.monotonic() < until and server.poll() is None, "the S3 server did not start"
            time.sleep(0.2)
        yield {
            "AWS_ENDPOINT_URL": address, "MLFLOW_S3_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    finally:
        server.terminate()
        server.wait(30)

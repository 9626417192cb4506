"""Environments of other people's tools, under .tools/NAME, made by uv from tests/NAME/requirements.txt.

`python tests/environments.py NAME` makes one if it is missing and prints its interpreter.
"""

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 1500


class Unavailable(Exception):
    """The environment cannot be made here; the message says why."""


def interpreter(name: str) -> Path:
    """Return the environment's Python, made anew where the requirements changed; Unavailable says what is missing."""
    requirements = ROOT / "tests" / name / "requirements.txt"
    folder = ROOT / ".tools" / name
    made = folder / f".made-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    if not made.exists():
        folder.parent.mkdir(exist_ok=True)
        with open(folder.parent / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                _make(folder, requirements)
                made.touch()
    return folder / "bin" / "python"


def _make(folder: Path, requirements: Path) -> None:
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        raise Unavailable("uv is neither on the path nor at .tools/bin/uv (`make test` puts it there)")
    shutil.rmtree(folder, ignore_errors=True)
    # uv's own cache is the user's, wherever a test run has put HOME
    env = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "-r", str(requirements)],
    ):
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"`{' '.join(command[1:3])}` took longer than {LIMIT_S} s") from error
        if done.returncode:
            reason = " ".join(done.stderr.split())[-300:]
            raise Unavailable(f"`uv {' '.join(command[1:3])}` failed: {reason}")


if __name__ == "__main__":
    try:
        print(interpreter(sys.argv[1]))
    except Unavailable as error:
        sys.exit(str(error))

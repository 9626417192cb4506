"""The environment of other people's readers and makers, under .tools/readers, made by uv from requirements.txt.

`python tests/readers/environment.py` makes it if it is missing and prints its interpreter.
"""

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".tools" / "readers"
LIMIT_S = 1500


class Unavailable(Exception):
    """The environment cannot be made here; the message says why."""


def interpreter() -> Path:
    """Return the environment's Python, made anew where the requirements changed; Unavailable says what is missing."""
    made = FOLDER / f".made-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]}"
    if not made.exists():
        FOLDER.parent.mkdir(exist_ok=True)
        with open(FOLDER.parent / "readers.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                _make()
                made.touch()
    return FOLDER / "bin" / "python"


def _make() -> None:
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        raise Unavailable("uv is neither on the path nor at .tools/bin/uv (`make test` puts it there)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    # uv's own cache is the user's, wherever a test run has put HOME
    env = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(FOLDER)],
        [uv, "pip", "install", "--quiet", "--python", str(FOLDER / "bin" / "python"), "-r", str(REQUIREMENTS)],
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
        print(interpreter())
    except Unavailable as error:
        sys.exit(str(error))

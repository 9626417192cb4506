"""`python tests/cluster/environment.py` makes .tools/infra, the environment of the programs that check infra/.

Where it cannot be made (no uv, no registry) it says why and ends well: the checks that need it are skipped.
"""

import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("tools.txt")
FOLDER = ROOT / ".tools" / "infra"
LIMIT_S = 600


def make() -> str:
    """Make it anew where the requirements changed; returns why not, or an empty text."""
    mark = FOLDER / f".made-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]}"
    if mark.exists():
        return ""
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        return "uv is neither on the path nor at .tools/bin/uv"
    # uv's own cache is the user's, wherever a test run has put HOME
    env = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
        [uv, "pip", "install", "--quiet", "--python", str(FOLDER / "bin" / "python"), "-r", str(REQUIREMENTS)],
    ):
        try:
            subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        except subprocess.CalledProcessError as error:
            return " ".join(error.stderr.split())[-300:]
        except subprocess.TimeoutExpired:
            return f"it took longer than {LIMIT_S} s"
    mark.touch()
    return ""


if __name__ == "__main__":
    if why := make():
        print(f"no .tools/infra: {why}; the checks that need it are skipped")

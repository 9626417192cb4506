"""What a process has loaded once it has imported some modules."""

import subprocess
import sys


def loaded_by(modules: str, heavy: set[str]) -> list[str]:
    """Those of `heavy` that a fresh process holds after `import modules`."""
    code = f"import sys, {modules}\nprint(*sorted({heavy!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.split()

import subprocess
import sys


def test_router_builders_and_release_manager_load_no_torch() -> None:
    """A process of a cluster that only routes, builds apps or watches the ledger starts in 2 s, not in 8."""
    code = (
        "import sys, sightloom.serving.builders, sightloom.serving.router, sightloom.promotion.manager\n"
        "print(sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"

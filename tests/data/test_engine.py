import subprocess
import sys


def test_the_driver_of_a_curation_holds_no_torch() -> None:
    code = (
        "import sys, sightloom.data.curation, sightloom.data.steps, sightloom.data.preview\n"
        "print(sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"

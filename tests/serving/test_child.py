"""A guarded child ends with its owner, with everything that it started, however either of them dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sightloom.errors import SightloomError
from sightloom.serving.engines import child as child_module
from sightloom.serving.engines import guard
from sightloom.serving.engines.child import Child

ENVIRONMENT = {"PATH": os.environ["PATH"], "MARK": "guarded"}
# A child as stubborn as an engine: it shares memory, it has a child of its own, and neither listens to SIGTERM.
STUBBORN = """
import multiprocessing.resource_tracker as tracker, multiprocessing.shared_memory as memory
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tracker.register = lambda *_: None
block = memory.SharedMemory(create=True, size=4096)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
open(sys.argv[1] + ".ids", "w").write(f"{os.getpid()} {grandchild.pid} {block.name}")
time.sleep(600)
"""


def command(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Stubborn:
    """What a stubborn child has written down: its id, its child's, its shared memory."""

    def __init__(self, written: Path) -> None:
        assert until(written.exists) and until(lambda: len(written.read_text().split()) == 3)
        own, other, block = written.read_text().split()
        self.own, self.other = int(own), int(other)
        self.block = Path("/dev/shm", block)

    def gone(self) -> bool:
        return not (lives(self.own) or lives(self.other) or self.block.exists())


def start(tmp_path: Path, grace_s: float = 0.3) -> tuple[Child, Stubborn]:
    place = tmp_path / "stubborn"
    child = Child(command(STUBBORN, str(place)), ENVIRONMENT, grace_s)
    return child, Stubborn(place.with_suffix(".ids"))


def test_closing_ends_a_group_that_does_not_listen_and_removes_its_shared_memory_and_folder(tmp_path: Path) -> None:
    child, ids = start(tmp_path)
    assert ids.block.exists() and child.folder.stat().st_mode & 0o777 == 0o700
    child.close()
    assert asyncio.run(child.wait(20.0))
    assert ids.gone() and not child.folder.exists()
    assert child.status == 128 + signal.SIGKILL


def test_a_stopped_child_is_ended_too(tmp_path: Path) -> None:
    child, ids = start(tmp_path)
    os.kill(ids.own, signal.SIGSTOP)
    child.close()
    assert until(ids.gone)


@pytest.mark.parametrize("victim", ["own", "other"])
def test_a_killed_child_takes_its_group_with_it_and_a_killed_grandchild_does_not(tmp_path: Path, victim: str) -> None:
    child, ids = start(tmp_path)
    time.sleep(2 * guard.LOOK_EVERY_S)  # memory that only the dead had mapped must have been seen before
    os.kill(getattr(ids, victim), signal.SIGKILL)
    if victim == "own":
        assert until(ids.gone)
    else:
        assert until(lambda: not lives(ids.other)) and lives(ids.own)
    child.close()
    assert asyncio.run(child.wait(20.0)) and ids.gone()


OWNER = """
import os, sys, time
from sightloom.serving.engines.child import Child
child = Child([sys.executable, "-c", sys.argv[2], sys.argv[1]], {"PATH": os.environ["PATH"]}, 0.3)
open(sys.argv[1] + ".folder", "w").write(str(child.folder))
time.sleep(600)
"""


def test_an_owner_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "owned"
    paths = os.pathsep.join(sys.path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place), STUBBORN], env={**os.environ, "PYTHONPATH": paths}
    )
    ids = Stubborn(place.with_suffix(".ids"))
    direct = subprocess.run(["pgrep", "-P", str(owner.pid)], capture_output=True, text=True, check=True)
    for pid in direct.stdout.split():  # Ray kills a worker's own children when the worker exits
        os.kill(int(pid), signal.SIGKILL)
    owner.kill()
    owner.wait()
    assert until(ids.gone)
    folder = Path(place.with_suffix(".folder").read_text())
    assert until(lambda: not folder.exists())


def test_status_log_and_environment_are_the_childs_own(tmp_path: Path) -> None:
    code = "import os, sys; [print(i) for i in range(99)]; print(sorted(os.environ), sys.argv[1]); sys.exit(7)"
    child = Child(command(code, "--uds={socket}"), ENVIRONMENT, 1.0)
    assert asyncio.run(child.wait(20.0)) and child.status == 7
    lines = child.log.splitlines()
    assert len(lines) == 50 and lines[0] == "50"
    assert f"--uds={child.socket}" in lines[-1] and "'MARK', 'PATH', 'TMPDIR'" in lines[-1]
    child.close()


def test_a_socket_path_that_the_kernel_would_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(child_module.tempfile, "tempdir", str(deep))
    with pytest.raises(SightloomError, match="longer than 107 bytes"):
        Child(["true"], ENVIRONMENT, 1.0)
    with contextlib.suppress(OSError):
        assert list(deep.iterdir()) == []


def test_a_child_may_give_way_with_its_whole_session(tmp_path: Path) -> None:
    code = "import os, sys; open(sys.argv[1], 'w').write(f'{os.nice(0)} ' + open('/proc/self/autogroup').read())"
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel does not group by session")
    found = {}
    for nice in (0, 7):
        written = tmp_path / f"nice-{nice}"
        child = Child(command(code, str(written)), ENVIRONMENT, 1.0, nice)
        assert until(lambda child=child: child.status is not None) and child.status == 0, child.log  # type: ignore[misc]
        child.close()
        found[nice] = written.read_text().split()
    own = os.nice(0)
    assert int(found[0][0]) == own and int(found[7][0]) == min(19, own + 7)
    assert found[0][-1] == "0" and found[7][-1] == "7", "and its autogroup"

"""Guards a child process: when its owner is gone, however it died, the child's whole process group ends.

    python -I guard.py LEASE GRACE_S FOLDER NICE COMMAND…

Run as a program by itself, with the standard library alone. `LEASE` is the read end of a pipe whose write end only the
owner holds: end of file means that the owner has closed it or is dead. Then, or when the child ends by itself, its
process group gets SIGTERM (and SIGCONT, for a stopped process), after `GRACE_S` seconds SIGKILL; shared memory that the
group had open and `FOLDER` are removed. `NICE` above 0: the group gives way to others. The exit status is the child's.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = "/dev/shm/"
LOOK_EVERY_S = 0.5


def main(lease: int, grace_s: float, folder: str, nice: int, command: list[str]) -> int:
    """Run the command until it or its owner ends; returns its exit status, negative for a signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the owner, which then closes the lease
    os.setsid()
    give_way(nice)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # the orphans of the group become ours, and are waited for
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # should the guard itself be killed
    )
    group = child.pid
    ended = os.pidfd_open(child.pid)
    poller = select.poll()
    poller.register(lease, select.POLLIN | select.POLLHUP)
    poller.register(ended, select.POLLIN)
    segments: set[str] = set()
    while not poller.poll(LOOK_EVERY_S * 1000):
        segments |= shared_memory_of(group)
    segments |= shared_memory_of(group)
    status = end_group(child, group, grace_s)
    for segment in segments:
        with contextlib.suppress(OSError):
            os.unlink(segment)
    shutil.rmtree(folder, ignore_errors=True)
    return status


def give_way(nice: int) -> None:
    """Lower the priority of this session: of each of its processes and, where Linux groups by session, of them all.

    There niceness counts within the session alone (sched(7), "The autogroup feature").
    """
    if nice > 0:
        os.nice(nice)
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def end_group(child: "subprocess.Popen[bytes]", group: int, grace_s: float) -> int:
    """Ask the group to end, then make it; returns the child's exit status."""
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reap(child)
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return child.wait()
            time.sleep(0.05)
    return child.wait()


def reap(child: "subprocess.Popen[bytes]") -> None:
    """Take the exit status of whoever has ended: the child, and orphans of its group."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child.pid:
                child.returncode = os.waitstatus_to_exitcode(ended[1])


def shared_memory_of(group: int) -> set[str]:
    """Paths under /dev/shm that processes of the group have mapped."""
    found: set[str] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getpgid(int(entry.name)) != group:
                continue
            maps = (entry / "maps").read_text()
        except OSError:
            continue  # it has just ended
        found |= {line[line.index(SHARED_MEMORY) :].strip() for line in maps.splitlines() if SHARED_MEMORY in line}
    return {path for path in found if not path.endswith(" (deleted)")}


def detached(lease: int, grace_s: float, folder: str, nice: int, command: list[str]) -> int:
    """Guard from a grandchild of the owner, and wait for it: Ray kills a worker's children when the worker exits."""
    guard = os.fork()
    if guard == 0:
        status = main(lease, grace_s, folder, nice, command)
        os._exit(status if status >= 0 else 128 - status)
    os.close(lease)
    return os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])


if __name__ == "__main__":
    sys.exit(detached(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]))

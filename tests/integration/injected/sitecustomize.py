"""Faults from outside: with this folder on PYTHONPATH every process of a run can be killed at a named point.

FAULT is JSON: `match` (of an address that is created or written), `nth`, `when` (before|after), `folder` (counters and
logs). A process that reaches the point for the nth time, over all processes, is killed once. Every chunk that is
measured or embedded is logged. Pictures that hold the bytes KILLS-ITS-DECODER kill what decodes them.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys

FAULT = json.loads(os.environ.get("SIGHTLOOM_TEST_FAULT", "{}"))


def log(name, line):
    with open(os.path.join(FAULT["folder"], name), "a", buffering=1) as file:
        file.write(line + "\n")


def reached():
    """Count this event over all processes; tell whether it is the one to die at."""
    path = os.path.join(FAULT["folder"], "events")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b".")
    nth = os.fstat(descriptor).st_size
    os.close(descriptor)
    if nth != FAULT["nth"]:
        return False
    try:
        os.close(os.open(os.path.join(FAULT["folder"], "killed"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def dying(function, place=0):
    """Make a function deadly at the address that is its argument number `place`."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        due = bool(FAULT.get("match")) and re.search(FAULT["match"], str(args[place])) and reached()
        if due and FAULT["when"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def logged(function, name):
    @functools.wraps(function)
    def call(row, *args, **kwargs):
        header = json.loads(row["header"])
        log(name, json.dumps([header.get("chunk"), header.get("missing")]))
        return function(row, *args, **kwargs)

    return call


def fatal(function):
    @functools.wraps(function)
    def call(data, *args, **kwargs):
        if b"KILLS-ITS-DECODER" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(data, *args, **kwargs)

    return call


def patch(module):
    if module.__name__ == "sightloom.storage":
        module.create, module.write = dying(module.create), dying(module.write)
        module.put_file = dying(module.put_file, 1)
    elif module.__name__ == "sightloom.data.scoring" and FAULT:
        module.measure_chunk = logged(module.measure_chunk, "measured")
    elif module.__name__ == "sightloom.data.embedding" and FAULT:
        module.embed_chunk = logged(module.embed_chunk, "embedded")
    elif module.__name__ == "sightloom.data.decode":
        module.decode = fatal(module.decode)


class Patching(importlib.abc.MetaPathFinder):
    TARGETS = ("sightloom.storage", "sightloom.data.scoring", "sightloom.data.embedding", "sightloom.data.decode")

    def find_spec(self, name, path, target=None):
        if name not in self.TARGETS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patching())

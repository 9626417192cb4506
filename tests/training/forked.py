"""Ranks as forked processes of a test: a spawned one would import torch again."""

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any


def run_ranks(target: Callable[..., None], count: int, *arguments: Any) -> tuple[list[ForkProcess], Any]:
    """Run `target(rank, *arguments, errors)` on `count` ranks to their end; the processes and the queue of errors."""
    context = multiprocessing.get_context("fork")
    errors = context.Queue()
    ranks = [context.Process(target=target, args=(rank, *arguments, errors)) for rank in range(count)]
    gc.collect()
    gc.freeze()  # a child that collected what the parent left would wait for threads that it does not have
    for process in ranks:
        process.start()
    gc.unfreeze()
    for process in ranks:
        process.join(120)
    return ranks, errors

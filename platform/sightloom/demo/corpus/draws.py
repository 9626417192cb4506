"""Random choices from one keyed generator: the same key gives the same picture on every machine."""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.random import Generator, Philox

T = TypeVar("T")

IN_ORDER: Final = 0.6


def keyed(seed: int, purpose: int, index: int) -> Generator:
    """A generator that depends on these three numbers alone."""
    return Generator(Philox(key=np.array([seed, (purpose << 48) | index], dtype=np.uint64)))


def maybe(rng: Generator, share: float) -> bool:
    """True in `share` of all draws."""
    return bool(rng.random() < share)


def pick(rng: Generator, items: Sequence[T]) -> T:
    """One of `items`, all alike."""
    return items[int(rng.integers(len(items)))]


def pick_some(rng: Generator, items: Sequence[T], count: int) -> list[T]:
    """`count` different `items` in random order."""
    return [items[int(place)] for place in rng.permutation(len(items))[:count]]


def told(rng: Generator, facts: Sequence[str]) -> str:
    """The facts of a caption, given in reading order, as words.

    A fact begins with what a question would name (`red three`, `kite top left`): the caption teaches to look it up.
    Most captions keep the reading order, which a small model learns quickly; in the others only the first word tells
    where to look.
    """
    return ", ".join(facts if maybe(rng, IN_ORDER) else pick_some(rng, facts, len(facts)))

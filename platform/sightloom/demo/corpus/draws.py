"""Random choices from one keyed generator: the same key gives the same picture on every machine."""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.random import Generator, Philox

T = TypeVar("T")

IN_ORDER: Final = 0.75


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


def told(rng: Generator, plain: Sequence[str], *wordings: Sequence[str]) -> str:
    """The facts of a caption as words.

    Most captions tell them `plain`, in reading order, which a small model learns quickly. The others tell them in any
    order and in one of the `wordings`: then each word has to be looked up in the picture, as questions ask.
    """
    if maybe(rng, IN_ORDER):
        return ", ".join(plain)
    return ", ".join(pick_some(rng, pick(rng, wordings), len(plain)))

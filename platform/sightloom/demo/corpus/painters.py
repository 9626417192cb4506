"""From (seed, index) to a sample: which painter draws it, with which generator."""

from typing import Final

from sightloom.demo.corpus import art, document, natural, science, ui
from sightloom.demo.corpus.draws import keyed
from sightloom.demo.corpus.sample import Sample
from sightloom.records import DOMAINS

_PAINTERS: Final = {
    "natural": natural.draw,
    "document": document.draw,
    "science": science.draw,
    "ui": ui.draw,
    "art": art.draw,
}
_PICTURE: Final = 1  # purpose of the key


def sample(seed: int, index: int, domain: str | None = None) -> Sample:
    """The sample of (seed, index); without a domain they take turns.

    Args:
        seed: any whole number from 0 on.
        index: which sample, from 0 on.
        domain: one of `records.DOMAINS`.
    """
    return _PAINTERS[domain or DOMAINS[index % len(DOMAINS)]](keyed(seed, _PICTURE, index))

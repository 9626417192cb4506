"""The corpus as an evaluation: questions over pictures that are drawn when they are asked for."""

import hashlib
from collections.abc import Mapping
from typing import Final

from sightloom.demo.corpus import defects
from sightloom.demo.corpus.objects import objects
from sightloom.demo.corpus.painters import sample
from sightloom.evaluation.examples import Example
from sightloom.evaluation.suites import Generator, ProceduralSource
from sightloom.records import DOMAINS

_FROM: Final = 3_000_000  # behind every index that a training corpus draws


def five_domains(source: ProceduralSource, suite: str) -> list[Example]:
    """`per_domain` questions of each of the five domains, four or fewer on a picture."""
    examples: list[Example] = []
    for place, domain in enumerate(DOMAINS):
        asked: list[Example] = []
        index = _FROM + place
        while len(asked) < source.per_domain:
            asked += _questions(source.seed, index, domain, suite)
            index += len(DOMAINS)
        examples += asked[: source.per_domain]
    return examples


def _questions(seed: int, index: int, domain: str, suite: str) -> list[Example]:
    one = sample(seed, index, domain)
    image = defects.encode(one.image, "png")
    group = hashlib.sha256(image).hexdigest()
    found = []
    for record in one.records(f"{domain}-{index:08d}")[1:]:  # the first is the dialogue
        assert record.answer is not None  # a question of the corpus has one
        prompt = record.prompt()
        its = type(record)(record.id, record.kind, record.task, domain, prompt, record.answer).with_image()
        steps = record.messages[-1].reasoning is not None
        found.append(Example(record.id, suite, domain, record.task, image, its, record.answer, group, steps))
    return found


GENERATORS: Final[Mapping[str, Generator]] = {"five-domains": five_domains, "objects": objects}

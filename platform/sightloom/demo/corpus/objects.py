"""The corpus's natural scenes by POPE's design: is there a thing in the picture that is not there?"""

import re
from typing import Final

from sightloom.demo.corpus import defects
from sightloom.demo.corpus.icons import GROUND, SKY
from sightloom.demo.corpus.painters import sample
from sightloom.evaluation.examples import Example
from sightloom.evaluation.objects import NEGATIVES, Pictured, object_questions
from sightloom.evaluation.suites import ProceduralSource

DOMAIN: Final = "hallucination"
_FROM: Final = 4_000_000  # behind every index that the questions of the five domains draw
_A_PICTURE: Final = 2  # questions: one about a thing that is there, one about another that is not


def objects(source: ProceduralSource, suite: str) -> list[Example]:
    """`per_domain` yes/no questions, a third each with random, popular and adversarial negatives."""
    num_pictures = -(-source.per_domain // (_A_PICTURE * len(NEGATIVES)))
    examples: list[Example] = []
    for place, negatives in enumerate(NEGATIVES):
        first = _FROM + place * num_pictures
        pictures = [_pictured(source.seed, first + number) for number in range(num_pictures)]
        examples += object_questions(pictures, negatives, 1, source.seed, suite, DOMAIN)
    return examples[: source.per_domain]


def _pictured(seed: int, index: int) -> Pictured:
    one = sample(seed, index, "natural")
    words = set(re.findall(r"[a-z]+", one.caption))  # the caption names every thing
    things = tuple(name for name in (*SKY, *GROUND) if name in words)
    return Pictured(f"objects-{index:08d}", defects.encode(one.image, "png"), things)

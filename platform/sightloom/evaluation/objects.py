"""Object hallucination by POPE's design (Li et al. 2023): is there a thing in the picture that is not there?"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final, Literal, get_args

from sightloom.errors import UserMistake
from sightloom.evaluation.examples import YES_NO, Example
from sightloom.records import Answer, Conversation, Message

Negatives = Literal["random", "popular", "adversarial"]
NEGATIVES: Final[tuple[Negatives, ...]] = get_args(Negatives)


@dataclass(frozen=True, slots=True)
class Pictured:
    """A picture and all the kinds of objects in it."""

    id: str
    image: bytes
    objects: tuple[str, ...]


def object_questions(
    pictures: Sequence[Pictured], negatives: str, per_picture: int, seed: int, suite: str, domain: str
) -> list[Example]:
    """As many questions about objects that are there as about objects that are not, up to `per_picture` of each.

    Absent objects are drawn evenly (`random`), or are those that most pictures have (`popular`), or that stand most
    often beside what is there (`adversarial`). A picture with fewer absent candidates asks as many of both kinds.

    Raises:
        UserMistake: an unknown kind of negatives, or no picture has an object that another lacks.
    """
    if negatives not in NEGATIVES:
        raise UserMistake(f"negatives '{negatives}' are not known", f"known: {', '.join(NEGATIVES)}")
    known = [dict.fromkeys(name.strip().casefold() for name in picture.objects) for picture in pictures]
    popular = Counter(name for objects in known for name in objects)
    together: dict[str, Counter[str]] = {name: Counter() for name in popular}
    for objects in known:
        for one, other in permutations(objects, 2):
            together[one][other] += 1
    examples = []
    for picture, objects in zip(pictures, known, strict=True):

        def drawn(name: str, picture: Pictured = picture) -> bytes:
            return hashlib.sha256(f"{seed}:{picture.id}:{name}".encode()).digest()

        beside = sum((together[name] for name in objects), Counter[str]())
        order = {"random": Counter[str](), "popular": popular, "adversarial": beside}[negatives]
        absent = sorted((name for name in popular if name not in objects), key=lambda name: (-order[name], drawn(name)))
        present = sorted(objects, key=drawn)
        count = min(per_picture, len(present), len(absent))
        for truth, names in zip(YES_NO, (present[:count], absent[:count]), strict=True):
            examples += [_question(picture, name, truth, negatives, suite, domain) for name in names]
    if not examples:
        raise UserMistake("no picture has an object that another one lacks, so there is nothing to ask")
    return examples


def _question(picture: Pictured, name: str, truth: str, negatives: str, suite: str, domain: str) -> Example:
    id = f"{picture.id}/{negatives}/{name}"
    article = "an" if name[:1] in "aeiou" else "a"
    asked = Message("user", f"Is there {article} {name} in the image?", image=True)
    answer = Answer("choice", truth, YES_NO)
    conversation = Conversation(id, "conversation", f"objects_{negatives}", domain, (asked,), answer)
    group = hashlib.sha256(picture.image).hexdigest()
    return Example(id, suite, domain, f"objects_{negatives}", picture.image, conversation, answer, group)

"""The noun of an evaluation: one question with a checkable answer, or a picture to describe."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from sightloom.config import canonical_json
from sightloom.records import Answer, Conversation

YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Example:
    """One question with a checkable answer.

    `conversation` ends with the question; `group` ties examples that share a picture (they are resampled together);
    `more_images` stand behind `image` in the turn that shows it; `also` are further right answers; `needs_steps` says
    that the source shows worked steps for it. A `caption` has no right answer: its answers are what people wrote.
    """

    id: str
    suite: str
    domain: str
    task: str
    image: bytes | None
    conversation: Conversation
    answer: Answer
    group: str
    needs_steps: bool = False
    also: tuple[Answer, ...] = ()
    caption: bool = False
    more_images: tuple[bytes, ...] = ()

    @property
    def images(self) -> tuple[bytes, ...]:
        """Every picture, in order."""
        return () if self.image is None else (self.image, *self.more_images)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Every right answer."""
        return (self.answer, *self.also)

    @property
    def kind(self) -> str:
        """The answer's kind, `yes_no` where those are its options, or `caption`."""
        if self.caption:
            return "caption"
        return "yes_no" if tuple(option.casefold() for option in self.answer.options) == YES_NO else self.answer.kind

    @property
    def question(self) -> str:
        """The text of the question itself."""
        return self.conversation.messages[-1].text

    @property
    def image_sha256(self) -> str:
        """SHA-256 of the picture's bytes, empty without a picture; of several pictures, with commas between."""
        return ",".join(hashlib.sha256(image).hexdigest() for image in self.images)


def suite_digest(examples: Iterable[Example]) -> str:
    """SHA-256 over ids, pictures, questions and answers: two measurements with equal digests compare."""
    whole = hashlib.sha256()
    for example in sorted(examples, key=lambda example: example.id):
        turns = [message.to_json() for message in example.conversation.messages]
        answers = [answer.to_json() for answer in example.answers]
        whole.update(canonical_json([example.id, example.image_sha256, turns, answers]))
    return whole.hexdigest()

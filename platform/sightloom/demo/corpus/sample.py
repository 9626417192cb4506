"""The noun of the corpus: a small picture, its dense caption, and questions whose answers are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.random import Generator
from PIL import Image

from sightloom.records import Answer, Conversation, Message

SEEN_TURNS: Final = 7  # of a dialogue, read off the picture
WORKED_TURNS: Final = 2  # of a dialogue, answered without their steps


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its checkable answer; `text` is the answer as the assistant writes it.

    `reasoning` is there exactly when the question needs steps: it lists facts in the caption's words, then computes.
    """

    task: str
    prompt: str
    text: str
    answer: Answer
    reasoning: str | None = None

    @property
    def needs_steps(self) -> bool:
        """Whether more than one fact has to be read and combined."""
        return self.reasoning is not None


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture of one domain; the caption states every fact that the questions ask about.

    `questions` are asked one by one and checked; `dialogue` holds more of them, asked in turn and answered at once.
    """

    domain: str
    image: Image.Image
    caption: str
    questions: tuple[Question, ...]
    dialogue: tuple[Question, ...]

    def records(self, key: str) -> list[Conversation]:
        """The dialogue (no `answer` to check), then one checkable record for each question.

        The dialogue also answers questions that need steps without their steps, so that a model can learn both ways.
        """
        turns: list[Message] = []
        for question in self.dialogue:
            turns.append(Message("user", question.prompt, image=not turns))
            turns.append(Message("assistant", question.text))
        dialogue = Conversation(f"{key}/dialogue", "conversation", f"{self.domain}.dialogue", self.domain, tuple(turns))
        return [
            dialogue,
            *(self._single(f"{key}/{number}", question) for number, question in enumerate(self.questions)),
        ]

    def _single(self, key: str, question: Question) -> Conversation:
        messages = (
            Message("user", question.prompt, image=True),
            Message("assistant", question.text, reasoning=question.reasoning),
        )
        task = f"{self.domain}.{question.task}"
        return Conversation(key, "conversation", task, self.domain, messages, question.answer)


def compose(
    rng: Generator,
    domain: str,
    image: Image.Image,
    caption: str,
    direct: Sequence[Question],
    steps: Sequence[Question] = (),
    drills: Sequence[Question] = (),
) -> Sample:
    """Choose from all questions of a picture: three direct ones and one with steps, and a dialogue of more turns.

    `drills` are exercises that need no picture; they stand in the dialogue alone.
    """
    seen, worked = _shuffled(rng, direct), _shuffled(rng, steps)
    turns = [*seen[:SEEN_TURNS], *worked[:WORKED_TURNS], *drills]
    return Sample(domain, image, caption, (*seen[:3], *worked[:1]), tuple(_shuffled(rng, turns)))


def _shuffled(rng: Generator, questions: Sequence[Question]) -> list[Question]:
    return [questions[int(place)] for place in rng.permutation(len(questions))]


def number(task: str, prompt: str, value: int, reasoning: str | None = None) -> Question:
    """A question whose answer is a whole number."""
    return Question(task, prompt, str(value), Answer("number", value), reasoning)


def text(task: str, prompt: str, value: str, reasoning: str | None = None) -> Question:
    """A question whose answer is a word or two."""
    return Question(task, prompt, value, Answer("text", value), reasoning)


def choice(task: str, prompt: str, value: str, options: Sequence[str], reasoning: str | None = None) -> Question:
    """A question whose answer is one of `options`, which the question does not list."""
    return Question(task, prompt, value, Answer("choice", value, tuple(options)), reasoning)


def click(
    task: str, prompt: str, spot: tuple[int, int], box: tuple[int, int, int, int], reasoning: str | None = None
) -> Question:
    """A question answered by a place in 0–1000 of the sides; every point of `box` is right."""
    value: Any = box
    return Question(task, prompt, f"({spot[0]}, {spot[1]})", Answer("point", value), reasoning)

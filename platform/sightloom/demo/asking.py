"""One question a domain, through the official client, over the served endpoint."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from sightloom.evaluation.examples import Example
from sightloom.objectives.rewards import score

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with what the model thought and said, and the truth."""

    domain: str
    picture: str
    question: str
    thinking: str
    answer: str
    truth: str
    right: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


def choose(examples: list[Example]) -> list[Example]:
    """One example a domain, the first that needs steps where the domain has such questions."""
    chosen: dict[str, Example] = {}
    for example in examples:
        kept = chosen.get(example.domain)
        if example.image is not None and (kept is None or (example.needs_steps and not kept.needs_steps)):
            chosen[example.domain] = example
    return [chosen[domain] for domain in sorted(chosen)]


def ask(address: str, model: str, examples: list[Example], pictures: Path) -> list[Asked]:
    """Ask each example with thinking where it needs steps; pictures are written into the folder `pictures`.

    Args:
        address: the endpoint's root, e.g. `http://127.0.0.1:8000`.
        model: the name that the endpoint serves.
        examples: with pictures.
        pictures: made when missing.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    asked = []
    with openai.OpenAI(base_url=f"{address}/v1", api_key="demo", timeout=_TIMEOUT_S, max_retries=2) as client:
        for example in examples:
            assert example.image is not None
            picture = pictures / f"{example.domain}.{_kind(example.image)}"
            picture.write_bytes(example.image)
            url = f"data:image/{_kind(example.image)};base64,{base64.b64encode(example.image).decode()}"
            answer = client.chat.completions.create(
                model=model,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": url}},
                            {"type": "text", "text": example.question},
                        ],
                    }
                ],
                temperature=0,
                max_completion_tokens=128,
                extra_body={"chat_template_kwargs": {"enable_thinking": example.needs_steps}},
            ).choices[0]
            content = answer.message.content or ""
            thinking = getattr(answer.message, "reasoning_content", None) or ""
            right = score(content, example.answer).value == 1.0
            truth = _say(example.answer.value)
            asked.append(Asked(example.domain, str(picture), example.question, thinking, content, truth, right))
    return asked


def _kind(image: bytes) -> str:
    return "png" if image.startswith(b"\x89PNG") else "jpeg"


def _say(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

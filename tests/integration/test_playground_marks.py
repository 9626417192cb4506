"""The playground before two versions whose answers are scripted: marks on the picture, both side by side, a refusal."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import Card, Readiness, Route, parse_model
from sightloom.serving.engines.base import Delta, EngineInfo, EngineRequest, PromptUsage, ThinkingPolicy, Timing
from sightloom.serving.errors import ApiError
from sightloom.serving.listening import listen

from .chromium import CHROMIUM, Tab, tab
from .test_playground import ask, drop, part, png

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
CHAMPION = EngineInfo("scripted", "1", "a" * 64, 512, "none", frozenset({"images", "thinking"}), ThinkingPolicy())
CHALLENGER = replace(CHAMPION, version="2", digest="b" * 64)
ANSWERS = {"1": "The circle fills [160, 170, 620, 790].", "2": "Its middle is at (390, 480)."}
AT = {"box": (0.16, 0.48), "point": (0.39 - 9 / 384, 0.48)}  # of the canvas: the box's left side, the circle's

CARRIED = """(() => {
  const carried = new DataTransfer();
  const bytes = Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0));
  carried.items.add(new File([bytes], %s, {type: "image/png"}));
  %s
})()"""
PASTE = 'document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));'
PICK = """const file = document.getElementById("file");
  file.files = carried.files;
  file.dispatchEvent(new Event("change", {bubbles: true}));"""

COPIES = """[...document.querySelectorAll('[data-part="copy"] button')]
  .filter((button) => button.checkVisibility()).map((button) => button.textContent)"""
CARD = """((card) => {
  const {top, bottom} = card.getBoundingClientRect();
  const colour = (words) => words.match(/[0-9]+/g).slice(0, 3).map(Number);
  const style = getComputedStyle(card);
  const page = colour(getComputedStyle(document.body).backgroundColor);
  return {top, bottom, seen: innerHeight, paper: colour(style.backgroundColor), words: colour(style.color), page};
})(%s)"""


class Scripted:
    """Champion 1 and challenger 2, each with its answer; a question with `busy` is refused."""

    async def cards(self, pins: bool) -> list[Card]:
        """Both."""
        return [Card("m", "champion", CHAMPION, 1), Card("m:1", None, CHAMPION, 1), Card("m:2", None, CHALLENGER, 1)]

    async def route(self, model: str, subject: str) -> Route:
        """By the name alone."""
        version = parse_model(model).version
        info = CHALLENGER if version == "2" else CHAMPION

        async def generate(request: EngineRequest) -> AsyncGenerator[Delta, None]:
            if "busy" in str(request.messages[-1].parts):
                raise ApiError(429, "engine_overloaded", "the engine's queue is full", retry_after_s=3)
            yield Delta(reasoning="Let me look.", num_reasoning_tokens=3, usage=PromptUsage(20, 16))
            timing = Timing(0.0, 0.01, 0.02)
            answer = ANSWERS[info.version]
            yield Delta(answer=answer, num_answer_tokens=9, finish="stop", thinking="complete", timing=timing)

        return Route("m", "pin" if version else "champion", 7, info, generate)

    async def readiness(self) -> Readiness:
        """Always."""
        return Readiness(True, 7, {})

    async def elsewhere(self, route: Route, error: ApiError) -> None:
        """Nowhere."""

    def record(self, outcome: Any) -> None:
        """Nobody asks."""

    def shadow(self, route: Route, request: EngineRequest, stops: tuple[str, ...], answer: str) -> None:
        """None."""

    async def state(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def tell(self, meters: Any) -> None:
        """Nothing to tell."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listen(build_app(EndpointConfig(), Scripted())) as served:
        yield served


async def ink(page: Tab, place: tuple[float, float]) -> list[int]:
    """The colour of the picture's pane at a place, as shares of its sides."""
    found: list[int] = await page.run(
        f"""(() => {{
          const canvas = document.getElementById("canvas");
          const at = [Math.round({place[0]} * canvas.width), Math.round({place[1]} * canvas.height)];
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");  // the page's is left alone
          copy.drawImage(canvas, 0, 0);
          return [...copy.getImageData(...at, 1, 1).data].slice(0, 3);
        }})()"""
    )
    return found


async def background(page: Tab) -> int:
    """How bright the page is, 0 to 765."""
    colour: str = await page.run("getComputedStyle(document.body).backgroundColor")
    return sum(int(value) for value in colour.split("(")[1].rstrip(")").split(",")[:3])


def test_places_are_drawn_for_champion_and_challenger_side_by_side(address: str, tmp_path: Path) -> None:
    async def act() -> dict[str, Any]:
        async with tab(tmp_path / "profile") as page:
            await page.open(address)
            light = await background(page)
            await page.run(drop(png("red")))
            await page.wait("!document.getElementById('stage').hidden")
            before = {name: await ink(page, place) for name, place in AT.items()}
            await page.wait("document.getElementById('rival').options.length > 1")
            await page.run("document.getElementById('rival').value = 'm:2'")
            await ask(page, "Where is the circle?")
            await page.picture(tmp_path / "marked.png")
            return {
                "light": light, "before": before,
                "after": {name: await ink(page, place) for name, place in AT.items()},
                "label": await page.run("document.getElementById('canvas').getAttribute('aria-label')"),
                "answers": [await page.run(part("answer", reply) + ".textContent") for reply in range(2)],
                "who": [await page.run(part("who", reply) + ".textContent") for reply in range(2)],
                "problems": page.problems,
            }  # fmt: skip

    seen = asyncio.run(act())
    assert seen["problems"] == [] and seen["light"] > 600
    assert [answer.strip() for answer in seen["answers"]] == [ANSWERS["1"], ANSWERS["2"]]
    assert "m:1" in seen["who"][0] and "m:2" in seen["who"][1], seen["who"]
    assert seen["label"] == "the picture, 2 place(s) marked"
    for name, colour in seen["after"].items():
        assert sum(abs(one - two) for one, two in zip(colour, seen["before"][name], strict=True)) > 120, (name, seen)
    assert seen["after"]["box"] != seen["after"]["point"], "each of them has its colour"


def test_pasted_and_picked_pictures_dark_and_a_refusal_that_counts_down(address: str, tmp_path: Path) -> None:
    async def act() -> dict[str, Any]:
        async with tab(tmp_path / "profile") as page:
            await page.open(address, 360, dark=True)
            seen: dict[str, Any] = {"dark": await background(page)}
            data = json.dumps(base64.b64encode(png("blue")).decode())
            await page.run(CARRIED % (data, '"pasted.png"', PASTE))
            await page.wait("document.getElementById('about').textContent.startsWith('pasted.png')")
            await page.run(CARRIED % (data, '"picked.png"', PICK))
            await page.wait("document.querySelectorAll('#strip button').length === 2")
            seen["problems"] = list(page.problems)
            await ask(page, "Are you busy?")
            await page.wait("!" + part("error") + ".hidden")
            seen["first"] = await page.run(part("error") + ".textContent")
            await page.picture(tmp_path / "refused.png")
            seen["card"] = await page.run(CARD % part("error"))
            seen["copies"] = await page.run(COPIES)
            await page.wait(part("error") + ".textContent.endsWith('Try again now.')", 10)
            seen["across"] = await page.run("document.documentElement.scrollWidth")
            return seen

    seen = asyncio.run(act())
    assert seen["problems"] == [] and seen["dark"] < 200 and seen["across"] <= 360
    assert seen["first"].startswith("the engine's queue is full engine_overloaded")
    assert seen["first"].endswith(("Try again in 3 s.", "Try again in 2 s."))
    assert 0 <= seen["card"]["top"] < seen["card"]["bottom"] <= seen["card"]["seen"], "in sight without scrolling"
    paper, words = seen["card"]["paper"], seen["card"]["words"]
    assert paper != seen["card"]["page"] and max(words) == words[0] > words[2], "reddish words on a card of its own"
    assert sum(words) - sum(paper) > 200, "bright on dark"
    assert seen["copies"] == ["copy as curl", "copy as Python"], "there is no answer to copy"

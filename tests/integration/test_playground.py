"""The playground in a real Chromium before a real endpoint: what a person does with it."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from sightloom.model.scratch import build_folder
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.listening import running

from .chromium import CHROMIUM, Tab, tab

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")

# the page's own policy refuses `fetch` of a data: address, so the bytes are decoded in the script
DROP = """(() => {
  const carried = new DataTransfer();
  %s.forEach((data, n) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], `picture${n + 1}.png`, {type: "image/png"}));
  });
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true}));
})()"""


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).ellipse((10, 8, 40, 38), fill=colour)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drop(*images: bytes) -> str:
    return DROP % json.dumps([base64.b64encode(image).decode() for image in images])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    texts = ["what colour is the circle? red", "describe the image"] * 40
    folder = build_folder("nano", texts, tmp_path_factory.mktemp("playground") / "nano", seed=5)
    with running(lambda: TransformersEngine(folder, "private"), name="nano") as served:
        yield served.address


async def ask(page: Tab, question: str) -> None:
    await page.wait("document.getElementById('model').options.length > 0")
    await page.run(f"document.getElementById('question').value = {json.dumps(question)}")
    await page.run("document.getElementById('question').focus()")
    await page.key("Enter", modifiers=2)
    await page.wait("document.getElementById('stop').hidden && !document.getElementById('turn').hidden")


def part(name: str, reply: int = 0) -> str:
    return f"document.querySelectorAll('.one')[{reply}].querySelector('[data-part=\"{name}\"]')"


def test_a_picture_is_dropped_asked_about_by_keyboard_and_answered(address: str, tmp_path: Path) -> None:
    async def act() -> dict[str, Any]:
        async with tab(tmp_path / "profile") as page:
            await page.open(address)
            await page.run(drop(png("red")))
            await page.wait("!document.getElementById('stage').hidden")
            await page.run("document.getElementById('max').value = 24; document.getElementById('budget').value = 8")
            await ask(page, "What colour is the circle?")
            await page.picture(tmp_path / "answered.png")
            seen = {
                "facts": await page.run(part("facts") + ".textContent"),
                "who": await page.run(part("who") + ".textContent"),
                "badge": await page.run("document.getElementById('badge').textContent"),
                "error": await page.run(part("error") + ".hidden"),
                "picture": await page.run("document.getElementById('about').textContent"),
            }
            await page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
            for kind in ("curl", "python"):
                await page.run(f"document.querySelector('[data-copy={kind}]').click()")
                seen[kind] = await page.run("window.copied")
            return {**seen, "problems": page.problems, "requests": page.requests}

    seen = asyncio.run(act())
    assert seen["problems"] == []  # no exception, no word of the console, no breach of the policy
    assert seen["requests"] and all(url.startswith(address + "/") for url in seen["requests"])
    assert seen["error"] is True
    assert "first token" in seen["facts"] and "of pictures" in seen["facts"] and "tokens/s" in seen["facts"]
    assert "private" in seen["badge"] and "transformers" in seen["badge"]
    assert seen["who"].startswith("nano")
    assert seen["picture"] == "picture1.png · 64 × 48 px"
    (tmp_path / "picture1.png").write_bytes(png("red"))
    said = subprocess.run(["bash", "-c", seen["curl"]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout)["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    ran = subprocess.run(
        [sys.executable, "-c", seen["python"]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "answer:" in ran.stdout


def test_two_pictures_two_models_and_a_stop(address: str, tmp_path: Path) -> None:
    async def act() -> dict[str, Any]:
        async with tab(tmp_path / "profile") as page:
            await page.open(address, dark=True)
            await page.run(drop(png("red"), png("blue")))
            await page.wait("document.querySelectorAll('#strip button').length === 2")
            await page.wait("document.getElementById('rival').options.length > 1")
            names = await page.run("[...document.getElementById('rival').options].map((option) => option.value)")
            await page.run("document.getElementById('rival').value = document.getElementById('rival').options[1].value")
            await page.run(
                "document.getElementById('max').value = 12; document.getElementById('thinking').checked = false"
            )
            await ask(page, "Compare the pictures.")
            await page.picture(tmp_path / "compared.png")
            two = await page.run("document.querySelectorAll('.one').length")
            errors = [await page.run(part("error", reply) + ".hidden") for reply in range(2)]
            await page.run("document.getElementById('rival').value = ''; document.getElementById('max').value = 1500")
            await page.run("document.getElementById('thinking').checked = true")
            await page.run(
                "document.getElementById('budget').value = 1400; document.getElementById('form').requestSubmit()"
            )
            await page.wait(part("thought-title") + ".textContent.startsWith('Thinking')")
            await page.key("Escape")
            await page.wait("document.getElementById('stop').hidden")
            stopped = await page.run(part("facts") + ".textContent")
            await page.run(
                "document.getElementById('schema').value = '{'; document.getElementById('form').requestSubmit()"
            )
            notice = await page.run("document.getElementById('notice').textContent")
            return {
                "names": names, "two": two, "errors": errors, "stopped": stopped, "notice": notice,
                "problems": page.problems,
            }  # fmt: skip

    seen = asyncio.run(act())
    assert seen["problems"] == []
    assert "nano" in seen["names"]
    assert (seen["two"], seen["errors"]) == (2, [True, True])
    assert "stopped" in seen["stopped"]
    assert "not JSON" in seen["notice"]


@pytest.mark.parametrize("width", [1280, 360])
def test_an_answer_is_markdown_and_never_markup(address: str, tmp_path: Path, width: int) -> None:
    hostile = (
        "# Title\n<img src=x onerror=alert(1)> **bold** *it* `co<b>de`\n\n- one\n- two [x](javascript:alert(1))\n\n"
        "3. third\n\n```\n<script>alert(1)</script>\n```\nsnake_case_name 2 * 3 * 4"
    )

    async def act() -> dict[str, Any]:
        async with tab(tmp_path / "profile") as page:
            await page.open(address, width)
            script = f"""(async () => {{
              const {{ render }} = await import("/playground/markdown.js");
              const box = document.createElement("div");
              box.append(render({json.dumps(hostile)}));
              document.getElementById("empty").append(box);
              return {{html: box.innerHTML, text: box.textContent, across: document.documentElement.scrollWidth}};
            }})()"""
            seen: dict[str, Any] = await page.run(script)
            await page.picture(tmp_path / "page.png")
            return {**seen, "problems": page.problems}

    seen = asyncio.run(act())
    assert seen["problems"] == []
    assert seen["html"] == (
        "<h3>Title</h3><p>&lt;img src=x onerror=alert(1)&gt; <strong>bold</strong> <em>it</em> "
        "<code>co&lt;b&gt;de</code></p><ul><li>one</li><li>two [x](javascript:alert(1))</li></ul>"
        '<ol start="3"><li>third</li></ol><pre><code>&lt;script&gt;alert(1)&lt;/script&gt;</code></pre>'
        "<p>snake_case_name 2 * 3 * 4</p>"
    )
    assert seen["across"] <= width, "the page scrolls sideways"

"""The page of a curation: one file that says everything, asks for nothing outside, and opens from a disk offline."""

import asyncio
import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sightloom.config import validate
from sightloom.data.curation import curate
from sightloom.data.garbage import find_garbage
from sightloom.data.recipe import Recipe
from sightloom.data.results import CurationResult
from sightloom.progress import NullProgress

from ..raw_pairs import scene_bytes, tar_bytes
from .chromium import CHROMIUM, tab

pytestmark = pytest.mark.usefixtures("ray_session")

HOSTILE = "</figcaption><script>document.title='owned'</script><img src='http://outside.example/x' onerror=alert(1)>"


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> CurationResult:
    """Two domains, three copies, a tiny picture, a cut one, and strings that would like to be mark-up."""
    root = tmp_path_factory.mktemp("page")
    samples = []
    for number in range(120):
        domain = "art" if number % 3 else HOSTILE
        image = scene_bytes(number, (40, 48))
        text = HOSTILE if number % 7 == 0 else f"scene number {number}"
        members = {"png": image, "txt": text.encode(), "json": json.dumps({"domain": domain}).encode()}
        samples.append((f"{number:05d}", members))
    samples += [(f"copy{n}", {**samples[n % 2][1], "txt": f"copy {n}".encode()}) for n in range(3)]
    samples.append(("tiny", {"png": scene_bytes(500, (2, 2)), "txt": b"a tiny one"}))
    samples.append(("cut", {"png": scene_bytes(501)[:150], "txt": b"a cut one"}))
    (root / "a.tar").write_bytes(tar_bytes(samples))
    return curate(recipe_of(root, tiny_clip), NullProgress())


def recipe_of(root: Path, tiny_clip: Path, **more: Any) -> Recipe:
    recipe = {
        "name": "page",
        "out": str(root / "out"),
        "source": [{"kind": "webdataset", "uri": f"{root}/a.tar"}],
        "score": {"clip": [{"name": "tiny", "model": f"local-dir:{tiny_clip}"}], "chunk_rows": 64},
        "dedup": {"prefer": "clip_tiny", "exact": True},
        "select": {
            "rules": {"small": "min(width, height) >= 8", "wordy": "text_words >= 3"},
            "top": [{"by": "clip_tiny", "fraction": 0.5, "per": "domain"}],
        },
        "report": {"gallery": 10},
        **more,
    }
    return validate(Recipe, recipe, "test")


class Elements(html.parser.HTMLParser):
    """The tags of a page, and the attributes that reach for something or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.reaching: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        reach = {"src", "href", "action", "srcset", "data", "style", "xlink:href"}
        self.reaching += [(name, str(value)) for name, value in attrs if name in reach or name.startswith("on")]


def facts_of(result: CurationResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(result.report).parent / "report.json").read_text())
    return found


def test_the_figures_say_what_came_in_what_stayed_and_what_each_drop_would_be_alone(curated: CurationResult) -> None:
    facts = facts_of(curated)
    assert {
        "rows_in", "kept", "dropped", "alone", "failed", "warnings", "domains", "thresholds", "histograms", "seconds",
        "samples_per_s", "scorers",
    } <= set(facts)  # fmt: skip
    assert facts["rows_in"] == 125 == facts["kept"] + sum(facts["dropped"].values()) + facts["failed"]
    assert facts["dropped"]["dup_image"] == 3 and facts["dropped"]["truncated_image"] == 1
    # 125 rows: one is cut; alone, the top would keep half of each domain's 124 usable rows
    assert facts["alone"]["dup_image"] == 3 and facts["alone"]["small"] == 1
    usable = {name: counts["rows"] for name, counts in facts["domains"].items()}
    usable["unknown"] -= 1
    assert facts["alone"]["top_clip_tiny"] == sum(rows - (rows + 1) // 2 for rows in usable.values())
    assert {cut["group"] for cut in facts["thresholds"]} <= {"art", HOSTILE, "unknown"}
    assert len(facts["histograms"]["clip_tiny"]["cuts"]) == len(facts["thresholds"])
    assert facts["histograms"]["height"]["cuts"] == [8.0] and facts["histograms"]["text_words"]["cuts"] == [3.0]
    assert (
        0.0 <= facts["scorers"]["clip_tiny"] <= 1.0
        and facts["domains"]["art"]["rows"] > facts["domains"]["art"]["kept"]
    )
    assert facts["seconds"]["score"] > 0 and facts["samples_per_s"] > 0


def test_the_page_is_one_file_with_nothing_from_outside_and_every_string_escaped(curated: CurationResult) -> None:
    page = Path(curated.report)
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "report.json"]
    text = page.read_text()
    assert len(text.encode()) <= 15_000_000
    found = Elements()
    found.feed(text)
    assert not found.tags & {"script", "link", "iframe", "object", "form", "base", "a"}
    assert all(name == "src" and value.startswith("data:image/webp;base64,") for name, value in found.reaching)
    assert len(found.reaching) > 20
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'" in text
    assert "&lt;script&gt;document.title=&#x27;owned&#x27;" in text


def test_the_page_shows_each_section_and_pictures_around_each_cut(curated: CurationResult) -> None:
    text = Path(curated.report).read_text()
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert [t for t in titles if t in ("Funnel", "Domains", "Scores and signals", "Cuts", "Pictures", "Run")] == [
        "Funnel", "Domains", "Scores and signals", "Cuts", "Pictures", "Run",
    ]  # fmt: skip
    above = [title for title in titles if title.startswith("just above the cut of clip_tiny in")]
    assert len(above) == len(facts_of(curated)["thresholds"]) and "copies: dup_image" in titles
    assert "dropped: small" in titles and "dropped: truncated_image" in titles
    assert text.count("group 1: stays") == 1 and text.count("copy, dropped") == 3
    assert text.count('class="cut"') >= len(above)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_offline_from_the_disk_without_an_error(
    curated: CurationResult, tmp_path: Path, width: int
) -> None:
    seen = asyncio.run(_look(Path(curated.report).as_uri(), tmp_path / "profile", width))
    assert seen["problems"] == [] and seen["requests"] == [Path(curated.report).as_uri()]
    assert seen["title"] == "page: curation report" and seen["images"] > 20 and seen["broken"] == 0
    assert seen["across"] <= width, "the page scrolls sideways"


async def _look(address: str, profile: Path, width: int) -> dict[str, Any]:
    """Open a page; return what the browser complained about, asked for, and how it came out."""
    async with tab(profile) as page:
        await page.open(address, width)
        found: dict[str, Any] = await page.run(
            "(async () => { const all = [...document.images];"
            "await Promise.all(all.map(i => i.decode().catch(() => 0)));"
            "return {title: document.title, images: all.length,"
            "broken: all.filter(i => !i.naturalWidth).length,"
            "across: document.documentElement.scrollWidth} })()"
        )
        return {**found, "problems": page.problems, "requests": page.requests}


def test_a_presets_rules_and_cuts_are_shown_like_own_ones(curated: CurationResult, tiny_clip: Path) -> None:
    root = Path(curated.manifest).parents[3]
    select = {"preset": "instruct", "rules": {"small": "min(width, height) >= 8"}}
    found = curate(recipe_of(root, tiny_clip, name="preset", select=select), NullProgress())
    facts = facts_of(found)
    assert facts["order"][-3:] == ["not_a_record", "no_answer", "small"]
    assert facts["alone"]["not_a_record"] == facts["rows_in"] - facts["dropped"]["truncated_image"] == 124
    assert find_garbage(str(root / "out"), -1.0) == []  # of two finished runs every file is named
    assert facts["alone"]["small"] == 1 and facts["histograms"]["width"]["cuts"] == [8.0]

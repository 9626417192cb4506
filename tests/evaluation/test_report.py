import re
from html.parser import HTMLParser

from sightloom.evaluation.gate import GateRules, decide
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Decoding, Statistics
from sightloom.evaluation.runner import summarize

from .conftest import example, row

SUBJECT = Subject("sightloom:13 at the gate", {"digest": "ab" * 32})


def page(hostile: str = "") -> str:
    examples = [example(f"e{i}", domain="art" if i % 2 else "ui") for i in range(120)]
    examples[0] = example("e0", domain="ui", image=b"broken")
    rows = [row(f"e{i}", i % 3 > 0, domain="art" if i % 2 else "ui") for i in range(120)]
    if hostile:
        rows = [
            type(r)(**{**{s: getattr(r, s) for s in r.__slots__}, "prediction": hostile, "reasoning": hostile})
            for r in rows
        ]
    before = [row(f"e{i}", i % 5 > 0, domain="art" if i % 2 else "ui") for i in range(120)]
    rules = GateRules.model_validate(
        {
            "suites": "x",
            "domains": {"art": {"floor": 0.5, "min_n": 50}, "format": {"metric": "well_formed", "floor": 0.9}},
        }
    )
    result = summarize(rows, examples, Decoding(), Statistics(resamples=200), 1.0)
    return render(SUBJECT, result, examples, decide(rows, before, rules), before)


def test_the_verdict_comes_first_and_the_page_needs_nothing_from_outside() -> None:
    text = page()
    assert text.index("The gate: ") < text.index("<h2>Domains") < text.index("<h2>Losses") < text.index("<h2>Gains")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "<script" not in text
    assert "ab" * 32 in text


def test_what_a_model_says_cannot_leave_its_place() -> None:
    text = page("<script>alert(1)</script><img src=http://evil>")

    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert dict(attrs).get("src", "data:").startswith("data:")

    Tags().feed(text)
    assert "script" not in Tags.seen
    assert "(unreadable picture)" in text

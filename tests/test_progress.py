import io

import pytest
from rich.console import Console

from sightloom.progress import BarProgress, PlainProgress


def test_plain_lines_tell_start_end_and_count() -> None:
    stream = io.StringIO()
    with PlainProgress(stream).step("score", total=4, unit="rows") as step:
        step.advance(4)
        step.note("auc 0.93")
    first, last = stream.getvalue().splitlines()
    assert first == "→ score"
    assert last.startswith("✓ score  4/4 rows") and last.endswith("auc 0.93")


def test_a_failed_step_is_marked_in_both_displays() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), PlainProgress(stream).step("score"):
        raise ValueError
    assert stream.getvalue().splitlines()[-1].startswith("✗ score")
    screen = io.StringIO()
    with pytest.raises(ValueError), BarProgress(Console(file=screen, force_terminal=True)).step("score"):
        raise ValueError
    assert "✗" in screen.getvalue()


def test_bars_nest_and_leave_a_line_each() -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=100))
    with progress.step("road", total=1) as outer:
        with progress.step("corpus", total=2, unit="pictures") as inner:
            inner.advance(2)
        outer.advance()
    text = screen.getvalue()
    assert text.count("✓") == 2 and "corpus" in text

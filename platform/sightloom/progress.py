"""One progress display for every long command: rich bars on a terminal, plain lines elsewhere; always on stderr."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_PLAIN_INTERVAL_S = 10.0


class Step(Protocol):
    """One running step."""

    def advance(self, count: float = 1) -> None:
        """Count work that is done."""

    def note(self, text: str) -> None:
        """Say a few words about what is going on (a loss, a rate)."""


class Progress(Protocol):
    """Where long functions say how far they are."""

    def step(self, name: str, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager[Step]:
        """Show a step while the `with` block runs; `total` in `unit`s, None if it is not known."""


class _Silent:
    def advance(self, count: float = 1) -> None:
        del count

    def note(self, text: str) -> None:
        del text


class NullProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def step(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """A step that nobody sees."""
        del name, total, unit
        yield _Silent()


class _Lines:
    """A step as plain lines: one at the start, one every ten seconds, one at the end."""

    def __init__(self, stream: TextIO, name: str, total: float | None, unit: str) -> None:
        self._stream, self._name, self._total, self._unit = stream, name, total, unit
        self._done, self._text = 0.0, ""
        self._start = self._last = time.monotonic()

    def advance(self, count: float = 1) -> None:
        self._done += count
        self._say_sometimes()

    def note(self, text: str) -> None:
        self._text = text
        self._say_sometimes()

    def _say_sometimes(self) -> None:
        if time.monotonic() - self._last >= _PLAIN_INTERVAL_S:
            self.say("")

    def say(self, mark: str) -> None:
        now = time.monotonic()
        self._last = now
        parts = [f"{mark or '…'} {self._name}"]
        if self._total is not None and self._done:
            parts.append(f"{self._done:g}/{self._total:g} {self._unit}".rstrip())
        elif self._done:
            parts.append(f"{self._done:g} {self._unit}".rstrip())
        elapsed = now - self._start
        if self._done and elapsed > 1:
            parts.append(f"{self._done / elapsed:.3g} {self._unit}/s")
            if not mark and self._total is not None:
                parts.append(f"{max(0.0, self._total - self._done) * elapsed / self._done:.0f} s left")
        if elapsed >= 0.1:
            parts.append(f"{elapsed:.1f} s")
        if self._text:
            parts.append(self._text)
        self._stream.write("  ".join(parts) + "\n")
        self._stream.flush()


class PlainProgress:
    """Progress as lines of text, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def step(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """A step as lines."""
        lines = _Lines(self._stream or sys.stderr, name, total, unit)
        lines.say("→")
        try:
            yield lines
        except BaseException:
            lines.say("✗")
            raise
        lines.say("✓")


class _Bar:
    def __init__(self, bars: Bars, task: TaskID, unit: str) -> None:
        self._bars, self._task, self._unit = bars, task, unit

    def advance(self, count: float = 1) -> None:
        self._bars.advance(self._task, count)
        task = self._bars.tasks[self._bars.task_ids.index(self._task)]
        if task.speed:
            self._bars.update(self._task, rate=f"{task.speed:.3g} {self._unit}/s")

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)


class BarProgress:
    """Progress as live bars on a terminal; nested steps stand below each other, finished ones stay as a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None

    @contextlib.contextmanager
    def step(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """A step as a bar."""
        outermost = self._bars is None
        bars = self._bars or Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._bars = bars
        if outermost:
            bars.start()
        started = time.monotonic()
        task = bars.add_task(name, total=total, rate="", note="")
        mark = "[red]✗[/]"
        try:
            yield _Bar(bars, task, unit)
            mark = "[green]✓[/]"
        finally:
            shown = bars.tasks[bars.task_ids.index(task)]
            note = str(shown.fields["note"])
            bars.remove_task(task)
            bars.console.print(f"{mark} {name} [dim]{time.monotonic() - started:.1f} s  {note}[/]", highlight=False)
            if outermost:
                bars.stop()
                self._bars = None


def terminal_progress() -> Progress:
    """The display that fits stderr: bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return BarProgress(console) if console.is_terminal else PlainProgress()

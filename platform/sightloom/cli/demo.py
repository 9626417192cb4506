"""The verb demo: the whole road on this machine."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sightloom.cli import console
from sightloom.demo.road import Demo, run_demo
from sightloom.progress import terminal_progress


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and order.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of everything that the demo makes.")] = Path("demo-out"),
    quick: Annotated[
        bool, typer.Option("--quick", help="The same road with tiny numbers; its figures mean nothing.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the endpoint and its playground until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the endpoint on 127.0.0.1.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Raw pairs in, a served reasoning model out: draw a corpus with planted defects, curate it with a filter network
    trained on the spot, train `nano` through its four stages, evaluate, gate, promote, serve and ask.

    Wholly offline; at most 15 minutes on 2 cores, or 5 with --quick. Run it again and it goes on from the last finished
    step.
    """
    with run_demo(out, seed, quick, port, terminal_progress()) as result:
        console.emit(result.to_json(), as_json, lambda screen: _show(screen, result))
        if keep:
            note = Console(stderr=True, highlight=False)
            note.print(f"\nplayground  {result.address}/     endpoint  {result.address}/v1     Ctrl-C ends it")
            signal.pause()


def _show(screen: Console, demo: Demo) -> None:
    if demo.quick:
        screen.print("[yellow]--quick: the road was walked with tiny numbers; the figures below mean nothing.[/]\n")
    _show_curation(screen, demo)
    _show_stages(screen, demo)
    for asked in demo.answers:
        _show_answer(screen, asked)
    verdict = "champion" if demo.version.get("champion") else "not promoted: the gate did not pass"
    screen.print(f"\nversion   {demo.version['name']}:{demo.version['version']}  {verdict}")
    for name, path in demo.paths.items():
        screen.print(f"{name:<9} {path}", soft_wrap=True)
    screen.print(f"time      {demo.seconds:.0f} s, seed {demo.seed}\n\nnext:")
    for command in demo.next_commands:
        screen.print(f"  {command}", soft_wrap=True)


def _show_curation(screen: Console, demo: Demo) -> None:
    figures = demo.curation
    screen.print(
        f"[bold]curation[/]  {figures['rows_in']} rows in, {figures['kept']} kept;  planted mismatches ranked below "
        f"true pairs: AUC {figures['auc']:.3f};  mismatched captions {figures['mismatch_in']:.1%} → "
        f"{figures['mismatch_out']:.1%}\n",
        soft_wrap=True,
    )


def _show_stages(screen: Console, demo: Demo) -> None:
    table = Table(title="held-out pictures, share of right answers (95 % interval)", title_justify="left")
    columns = [name for name in ("all", "natural", "document", "science", "ui", "art", "steps")]
    table.add_column("after")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("well-formed thinking", justify="right")
    for row in demo.table:
        cells = [_percent(row["figures"].get(name)) for name in (*columns, "well_formed")]
        table.add_row(row["name"], *cells)
    screen.print(table)


def _percent(figure: dict[str, Any] | None) -> str:
    if figure is None or figure.get("value") is None:
        return "–"
    low, high = figure.get("ci") or (None, None)
    interval = f" [dim]{low * 100:.0f}–{high * 100:.0f}[/]" if low is not None and high is not None else ""
    return f"{figure['value'] * 100:.1f}{interval}"


def _show_answer(screen: Console, asked: Mapping[str, Any]) -> None:
    screen.print(f"\n[bold]{asked['domain']}[/]  {asked['question']}")
    if screen.is_terminal:
        screen.print(_blocks(Path(asked["picture"])))
    else:
        screen.print(f"  picture   {asked['picture']}", soft_wrap=True)
    if asked["thinking"]:
        screen.print(f"  thinking  [dim]{asked['thinking']}[/]", soft_wrap=True)
    mark = "[green]right[/]" if asked["right"] else f"[red]wrong[/], the truth is {asked['truth']}"
    screen.print(f"  answer    {asked['answer']}   {mark}", soft_wrap=True)


def _blocks(picture: Path, side: int = 32) -> Text:
    """The picture as coloured half blocks, two pixels a character."""
    with Image.open(picture) as image:
        small = image.convert("RGB").resize((side, side), Image.Resampling.BOX)
    text = Text()
    for y in range(0, side, 2):
        for x in range(side):
            above, below = small.getpixel((x, y)), small.getpixel((x, y + 1))
            text.append("▀", style=f"rgb{above} on rgb{below}".replace(" ", "").replace("on", " on "))
        text.append("\n")
    return text

"""The report: one HTML file without scripts or outside addresses; the verdict first, then figures, then examples."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from sightloom.evaluation import tables
from sightloom.evaluation.examples import Example
from sightloom.evaluation.gate import Decision
from sightloom.evaluation.result import DomainMeasure, Result, Row, by_domain

_SHOWN = 6  # examples of a kind in each domain
_EMBEDDED_PX = 512  # larger pictures are shrunk for the page

_STYLE = """
:root{--ink:#1c2024;--soft:#60656c;--line:#dfe2e6;--paper:#fff;--card:#f7f8fa;--good:#1a7f4b;--bad:#c62f3b;--wait:#9a6700;
--bar:#5b7fd1;--mark:#b4532a}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa0a8;--line:#363a40;--paper:#16181b;--card:#1f2226;
--good:#5fc992;--bad:#ff7a83;--wait:#e3b341;--bar:#8fb0ff;--mark:#f0a17c}}
*{box-sizing:border-box}body{margin:0 auto;padding:2rem 1.2rem 5rem;max-width:66rem;background:var(--paper);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem}h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.3rem 0}.soft{color:var(--soft)}.verdict{border-left:6px solid var(--tone);background:var(--card);
padding:1rem 1.2rem;border-radius:6px;margin:1.2rem 0}.verdict strong{font-size:1.25rem;color:var(--tone)}
.passed{--tone:var(--good)}.rejected,.failed{--tone:var(--bad)}.inconclusive{--tone:var(--wait)}.plain{--tone:var(--bar)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.45rem .7rem .45rem 0;border-bottom:1px solid var(--line);vertical-align:middle}
th{font-weight:600;color:var(--soft);font-size:.85rem}td .soft{white-space:nowrap}
td.tone{color:var(--tone);font-weight:600}svg{display:block}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:.9rem}
.card{background:var(--card);border:1px solid var(--line);border-top:4px solid var(--tone);border-radius:6px;
padding:.8rem;overflow-wrap:anywhere}.card img{width:100%;max-height:15rem;object-fit:contain;background:var(--paper);
border-radius:4px;image-rendering:pixelated}.card dl{margin:.5rem 0 0;display:grid;grid-template-columns:5rem 1fr;
gap:.2rem .5rem;font-size:.9rem}.card dt{color:var(--soft)}.card dd{margin:0;white-space:pre-wrap}
.right{--tone:var(--good)}.wrong{--tone:var(--bad)}code{font-size:.85em;overflow-wrap:anywhere}
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who was measured: `title` stands on top, `facts` (digests, addresses, run ids) at the end."""

    title: str
    facts: Mapping[str, str]


def render(
    subject: Subject,
    result: Result,
    examples: Sequence[Example],
    decision: Decision | None = None,
    baseline: Sequence[Row] | None = None,
) -> str:
    """The whole page.

    Args:
        subject: who was measured.
        result: what was measured.
        examples: the examples themselves, for their pictures.
        decision: the gate's, if it was asked.
        baseline: the champion's rows on the same examples; gains and losses are then shown against it.
    """
    pictures = {example.id: example.images for example in examples}
    parts = [
        f"<h1>{_text(subject.title)}</h1>",
        f'<p class="soft">suite {_text(result.suite)}, {result.overall.n} questions, {result.seconds:.0f} s</p>',
        _verdict(result, decision),
        "<h2>Domains</h2>",
        _domains(result, decision),
        "<h2>Tasks</h2>",
        _tasks(result),
        *tables.metrics(result),
        *tables.speed(result, decision),
        *tables.imported(result),
        *_examples([row for row in result.rows if not row.source], baseline, pictures),
        "<h2>What was measured</h2>",
        _facts(subject, result),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(subject.title)}</title><style>{_STYLE}</style></head><body>"
    )
    return head + "\n".join(parts) + "</body></html>\n"


def _verdict(result: Result, decision: Decision | None) -> str:
    low, high = result.overall.ci
    lines = [
        f"<p>{_percent(result.overall.value)} right overall, between {_percent(low)} and {_percent(high)}; "
        f"the best constant answers give {_percent(result.chance_constant)}.</p>"
        if result.overall.metric == "accuracy"
        else f"<p>CIDEr-D {result.overall.value:.2f}, between {low:.2f} and {high:.2f}.</p>"
    ]
    if result.needs_steps is not None:
        low, high = result.needs_steps.ci
        lines.append(
            f"<p>{_percent(result.needs_steps.value)} of the {result.needs_steps.n} questions that need steps, "
            f"between {_percent(low)} and {_percent(high)}.</p>"
        )
    lines.append(f"<p>{_percent(result.format['well_formed'].value)} of the answers are well formed.</p>")
    if result.errors:
        lines.append(f"<p>{result.errors} questions could not be asked or answered; they count as wrong.</p>")
    if decision is None:
        return f'<div class="verdict plain">{"".join(lines)}</div>'
    lines += [f"<p>{_text(reason)}</p>" for reason in decision.reasons]
    against = "against the champion" if decision.against_baseline else "there was no champion to compare with"
    return (
        f'<div class="verdict {decision.outcome}"><strong>The gate: {decision.outcome}</strong> '
        f'<span class="soft">({against})</span>{"".join(lines)}</div>'
    )


def _domains(result: Result, decision: Decision | None) -> str:
    rows = []
    for name, measure in result.domains.items():
        judged = decision.domains.get(name) if decision else None
        cells = [
            _text(name),
            _bar(measure, judged.floor if judged else None),
            f"{_percent(measure.value)} <span class='soft'>{_interval(measure.ci)}</span>",
            str(measure.n),
            _percent(measure.chance_constant),
            _percent(measure.needs_steps.value) if measure.needs_steps else "–",
        ]
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        if decision:
            line += _judged(decision, name)
        rows.append(f"<tr>{line}</tr>")
    titles = ["domain", "0 … 100 %", "accuracy", "n", "constant answer", "needs steps"]
    titles += ["against the champion", "verdict"] if decision else []
    others = [name for name in (decision.domains if decision else {}) if name not in result.domains]
    for name in others:
        assert decision is not None
        found = decision.domains[name]
        cells = [_text(name), "", f"{_percent(found.value)} <span class='soft'>{_interval(found.ci)}</span>"]
        cells += [str(found.n), "–", "–"]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + _judged(decision, name) + "</tr>")
    legend = "bar: accuracy; line: its interval; | : the best constant answers" + ("; ◆ : floor" if decision else "")
    return _table(titles, rows) + f'<p class="soft">{legend}</p>'


def _judged(decision: Decision, name: str) -> str:
    found = decision.domains.get(name)
    if found is None:
        return "<td></td><td class='soft'>not in the gate</td>"
    delta = "–"
    if found.delta is not None and found.delta_bounds is not None:
        low, high = found.delta_bounds
        holm = "" if found.p_adjusted is None else f", Holm p {found.p_adjusted:.3f}"
        delta = f"{100 * found.delta:+.1f} <span class='soft'>[{100 * low:+.1f}, {100 * high:+.1f}]{holm}</span>"
    kind = "" if found.blocking else " <span class='soft'>(not blocking)</span>"
    return f"<td>{delta}</td><td class='tone {found.verdict}'>{found.verdict}{kind}</td>"


def _bar(measure: DomainMeasure, floor: float | None) -> str:
    low, high = (200 * side for side in measure.ci)
    chance = 200 * measure.chance_constant
    diamond = ""
    if floor is not None:
        x = 200 * floor
        diamond = f'<path d="M{x:.1f} 3l4 5-4 5-4-5z" fill="var(--mark)"/>'
    return (
        '<svg width="208" height="16" viewBox="-4 0 208 16" role="img">'
        '<rect x="0" y="5" width="200" height="6" fill="var(--line)"/>'
        f'<rect x="0" y="5" width="{200 * measure.value:.1f}" height="6" fill="var(--bar)"/>'
        f'<path d="M{low:.1f} 8H{high:.1f}M{low:.1f} 4v8M{high:.1f} 4v8" stroke="var(--ink)" stroke-width="1.5"/>'
        f'<path d="M{chance:.1f} 1v14" stroke="var(--mark)" stroke-width="2"/>{diamond}</svg>'
    )


def _tasks(result: Result) -> str:
    rows = [
        f"<tr><td>{_text(name)}</td><td>{_percent(measure.value)} <span class='soft'>{_interval(measure.ci)}</span>"
        f"</td><td>{measure.n}</td></tr>"
        for name, measure in result.tasks.items()
    ]
    return _table(["task", "accuracy", "n"], rows)


def _examples(
    rows: Sequence[Row], baseline: Sequence[Row] | None, pictures: Mapping[str, Sequence[bytes]]
) -> list[str]:
    parts = []
    if baseline is not None:
        before = {row.id: row for row in baseline}
        gained = [row for row in rows if row.right and not before[row.id].right]
        lost = [row for row in rows if not row.right and before[row.id].right]
        parts.append(f"<h2>Losses against the champion ({len(lost)})</h2>")
        parts.append(_cards(lost[: 2 * _SHOWN], pictures, before))
        parts.append(f"<h2>Gains against the champion ({len(gained)})</h2>")
        parts.append(_cards(gained[: 2 * _SHOWN], pictures, before))
    parts.append("<h2>Wrong and right answers</h2>")
    for name, its in by_domain(rows).items():
        captions = sorted((row for row in its if row.kind == "caption"), key=lambda row: row.scores["cider"])
        if captions:
            parts.append(f"<h3>{_text(name)}: the furthest of {len(captions)} captions</h3>")
            parts.append(_cards(captions[:_SHOWN], pictures, {}))
        its = [row for row in its if row.kind != "caption"]
        if not its:
            continue
        wrong = _telling([row for row in its if not row.right])
        right = _telling([row for row in its if row.right])
        parts.append(f"<h3>{_text(name)}: {len(wrong)} wrong, {len(right)} right</h3>")
        parts.append(_cards([*wrong[:_SHOWN], *right[: _SHOWN // 2]], pictures, {}))
    return parts


def _telling(rows: Sequence[Row]) -> list[Row]:
    """Errors first, then questions that need steps, each task in turn."""
    seen: dict[str, int] = {}
    order = []
    for row in rows:
        seen[row.task] = seen.get(row.task, 0) + 1
        order.append((row.error is None, seen[row.task], not row.needs_steps, row.id))
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


def _cards(rows: Sequence[Row], pictures: Mapping[str, Sequence[bytes]], before: Mapping[str, Row]) -> str:
    if not rows:
        return '<p class="soft">none</p>'
    cards = []
    for row in rows:
        entries = [("question", row.prompt), ("expected", row.expected), ("answer", row.prediction or "(none)")]
        if row.id in before:
            entries.append(("champion", before[row.id].prediction or "(none)"))
        if row.reasoning:
            entries.append(("thinking", row.reasoning))
        if row.kind == "caption":
            entries.append(("scores", ", ".join(f"{name} {value:.2f}" for name, value in row.scores.items())))
        if row.error:
            entries.append(("error", row.error))
        entries.append(("task", f"{row.task}, {row.tokens} tokens, {row.finish}, thinking {row.thinking}"))
        words = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in entries)
        shown = "".join(_picture(image) for image in pictures.get(row.id, ()))
        tone = "plain" if row.kind == "caption" else "right" if row.right else "wrong"
        cards.append(f'<div class="card {tone}">{shown}<dl>{words}</dl></div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _picture(image: bytes) -> str:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            shown = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return '<p class="soft">(unreadable picture)</p>'
    shown.thumbnail((_EMBEDDED_PX, _EMBEDDED_PX))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", lossless=max(shown.size) <= 128, quality=80)
    return f'<img alt="" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _facts(subject: Subject, result: Result) -> str:
    facts = dict(subject.facts) | {
        "suite digest": result.suite_digest,
        "decoding": result.decoding.model_dump_json(),
        "statistics": result.statistics.model_dump_json(),
    }
    rows = [f"<tr><td>{_text(name)}</td><td><code>{_text(value)}</code></td></tr>" for name, value in facts.items()]
    return _table(["", ""], rows)


def _table(titles: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{_text(title)}</th>" for title in titles)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _interval(ci: tuple[float, float]) -> str:
    return f"[{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _text(value: str) -> str:
    return html.escape(value)

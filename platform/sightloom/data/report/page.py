"""The page: one HTML file without scripts or outside addresses; every string of the corpus is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any

from sightloom.data.report.gallery import Gallery

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6b7c;--line:#dde3ea;--paper:#fff;--page:#f5f7fa;--keep:#1a7f5a;
--drop:#c2513b;--all:#b9c4d1;--cut:#7a3ff2}
@media(prefers-color-scheme:dark){:root{--ink:#e7ecf2;--soft:#9aa8b8;--line:#2c3644;--paper:#18202a;--page:#10161e;
--keep:#3fbf8d;--drop:#e8816c;--all:#46556a;--cut:#b594ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:34px 0 10px}h3{font-size:15px;margin:22px 0 8px}
p.soft,.soft{color:var(--soft)}code{font-size:12px;color:var(--soft);overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:18px 0}
.card,.plot{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
table{width:100%;border-collapse:collapse;background:var(--paper);border:1px solid var(--line);border-radius:10px}
td,th{padding:5px 12px;text-align:left;border-top:1px solid var(--line);font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;border-top:0}td.n,th.n{text-align:right}td.bar{width:40%}
.scroll{overflow-x:auto}td:first-child{overflow-wrap:anywhere;min-width:9em}
@media(max-width:640px){td.bar,th:empty{display:none}td,th{padding:5px 8px}
h1{font-size:22px}main{padding:18px 12px 40px}}
svg{display:block;width:100%}.b-keep{fill:var(--keep)}.b-drop{fill:var(--drop)}.b-all{fill:var(--all)}
.cut{stroke:var(--cut);stroke-width:1.6;stroke-dasharray:4 3}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:12px}
.ends{display:flex;justify-content:space-between;color:var(--soft);font-size:12px}
.warn{border-left:4px solid var(--drop);background:var(--paper);padding:8px 14px;margin:8px 0}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(116px,1fr));gap:8px}
figure{margin:0;background:var(--paper);border:1px solid var(--line);border-radius:8px;overflow:hidden}
figure.k{border-top:3px solid var(--keep)}figure.d{border-top:3px solid var(--drop)}
figure img,figure .none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:var(--page)}
figure .none{display:grid;place-items:center;color:var(--soft);font-size:12px}
figcaption{padding:5px 7px;font-size:11px;line-height:1.35;overflow-wrap:anywhere}figcaption i{color:var(--soft)}
"""


def render(name: str, facts: dict[str, Any], galleries: Sequence[Gallery]) -> str:
    """Return the page's HTML.

    Args:
        name: of the curation.
        facts: what `report.collect` found.
        galleries: rows of pictures.
    """
    allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    body = [
        f"<h1>{escape(name)}</h1><p class=soft>What came in, what stayed, and why.</p>",
        _cards(facts),
        *(f"<p class=warn>{escape(text)}</p>" for text in facts["warnings"]),
        "<h2>Funnel</h2>",
        _funnel(facts),
        "<h2>Domains</h2>",
        _domains(facts["domains"]),
        "<h2>Scores and signals</h2><p class=soft>Grey: all usable rows. Green: kept. Dashed: the cut.</p>",
        f"<div class=plots>{''.join(_plot(title, h) for title, h in facts['histograms'].items())}</div>",
        _cuts(facts["thresholds"]),
        _scorers(facts["scorers"]),
        "<h2>Pictures</h2>",
        *(_gallery(gallery) for gallery in galleries),
        "<h2>Run</h2>",
        _run(facts),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}: curation report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def _cards(facts: dict[str, Any]) -> str:
    rows = max(1, facts["rows_in"])
    cards = {
        "rows in": f"{facts['rows_in']:,}",
        "kept": f"{facts['kept']:,}",
        "keep rate": f"{facts['kept'] / rows:.1%}",
        "dropped": f"{sum(facts['dropped'].values()):,}",
        "failed": f"{facts['failed']:,}",
        "rows a second": f"{facts['samples_per_s']:,.0f}",
    }
    return (
        "<div class=cards>"
        + "".join(
            f"<div class=card><b>{value}</b><span class=soft>{label}</span></div>" for label, value in cards.items()
        )
        + "</div>"
    )


def _bar(share: float, kind: str, behind: float = 0.0) -> str:
    """Return a bar as SVG; `behind` draws a grey one under it."""
    return (
        '<svg viewBox="0 0 100 9" preserveAspectRatio="none" height="12" aria-hidden="true">'
        f'<rect class="b-all" width="{100 * behind:.2f}" height="9"/>'
        f'<rect class="{kind}" width="{100 * share:.2f}" height="9"/></svg>'
    )


def _funnel(facts: dict[str, Any]) -> str:
    left, total = facts["rows_in"], max(1, facts["rows_in"])
    order = [*facts["order"], *(name for name in facts["dropped"] if name not in facts["order"])]
    lines = [f"<tr><td>rows in<td class=n><td class=n>{left:,}<td class=n><td class=bar>{_bar(1, 'b-keep')}</tr>"]
    steps = [(name, facts["dropped"].get(name, 0)) for name in order] + [("failed inside", facts["failed"])]
    for name, count in steps:
        if not count and name not in facts["alone"]:
            continue
        left -= count
        alone = f"{facts['alone'][name]:,}" if name in facts["alone"] else ""
        bar = _bar(left / total, "b-keep", (left + count) / total)
        lines.append(
            f"<tr><td>{escape(name)}<td class=n>{f'−{count:,}' if count else 0}<td class=n>{left:,}<td class=n>{alone}"
            f"<td class=bar>{bar}</tr>"
        )
    return _table("<th>reason<th class=n>dropped<th class=n>left<th class=n>would drop alone<th>", lines)


def _table(head: str, lines: Sequence[str]) -> str:
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _domains(domains: dict[str, dict[str, int]]) -> str:
    most = max((counts["rows"] for counts in domains.values()), default=1)
    lines = [
        f"<tr><td>{escape(name)}<td class=n>{counts['rows']:,}<td class=n>{counts['kept']:,}"
        f"<td class=bar>{_bar(counts['kept'] / most, 'b-keep', counts['rows'] / most)}</tr>"
        for name, counts in domains.items()
    ]
    return (
        "<div class=scroll><table><tr><th>domain<th class=n>rows<th class=n>kept<th></tr>"
        + "".join(lines)
        + "</table></div>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plot(title: str, histogram: dict[str, Any]) -> str:
    top, bins = max(max(histogram["rows"]), 1), len(histogram["rows"])
    low, high = histogram["low"], histogram["high"]
    width = 300 / bins
    shapes = [
        f'<rect class="{kind}" x="{index * width:.2f}" y="{100 - 96 * count / top:.2f}" width="{width - 0.6:.2f}" '
        f'height="{96 * count / top:.2f}"/>'
        for kind, counts in (("b-all", histogram["rows"]), ("b-keep", histogram["kept"]))
        for index, count in enumerate(counts)
        if count
    ]
    for cut in (cut for cut in histogram["cuts"] if low <= cut <= high):
        x = 300 * (cut - low) / (high - low)
        shapes.append(f'<line class="cut" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="100"/>')
    cuts = ", ".join(map(_number, histogram["cuts"]))
    below = f"<div class=ends>cut at {cuts}</div>" if cuts else ""
    return (
        f"<div class=plot><b>{escape(title)}</b>"
        f'<svg viewBox="0 0 300 100" role="img" aria-label="histogram of {escape(title)}">{"".join(shapes)}</svg>'
        f"<div class=ends><span>{_number(low)}</span><span>{_number(high)}</span></div>{below}</div>"
    )


def _cuts(thresholds: Sequence[dict[str, Any]]) -> str:
    if not thresholds:
        return ""
    lines = []
    for cut in thresholds:
        lowest = "" if cut["threshold"] is None else f"{cut['threshold']:.4g}"
        lines.append(
            f"<tr><td>{escape(cut['by'])}<td>{escape(cut['group'] or 'all')}<td class=n>{cut['rows']:,}"
            f"<td class=n>{cut['kept']:,}<td class=n>{lowest}</tr>"
        )
    head = "<th>score<th>group<th class=n>rows<th class=n>kept<th class=n>lowest kept"
    return "<h2>Cuts</h2>" + _table(head, lines)


def _scorers(scorers: dict[str, float | None]) -> str:
    if not scorers:
        return ""
    lines = [
        f"<tr><td>{escape(name)}<td class=n>{'' if value is None else f'{value:.3f}'}</tr>"
        for name, value in scorers.items()
    ]
    return (
        "<h2>Do the scorers know this corpus?</h2><p class=soft>The chance that a picture's own caption outranks the "
        "next picture's, 0.5 = no idea.</p>" + _table("<th>scorer<th class=n>AUC", lines)
    )


def _gallery(gallery: Gallery) -> str:
    border = {True: " class=k", False: " class=d", None: ""}[gallery.kept]
    figures = []
    for picture in gallery.pictures:
        image = f'<img src="{picture.data}" alt="">' if picture.data else "<div class=none>no picture</div>"
        note = f"<br><i>{escape(picture.note)}</i>" if picture.note else ""
        figures.append(f"<figure{border}>{image}<figcaption>{escape(picture.text)}{note}</figcaption></figure>")
    return f"<h3>{escape(gallery.title)}</h3><div class=row>{''.join(figures)}</div>"


def _run(facts: dict[str, Any]) -> str:
    seconds = " · ".join(f"{escape(name)} {value:.1f} s" for name, value in facts["seconds"].items())
    shards = [
        f"<tr><td>{escape(name)}<td class=n>{samples:,}<td class=n>{size / 1e6:.1f} MB</tr>"
        for name, samples, size in facts["shards"]
    ]
    return (
        f"<p class=soft>{seconds}</p>"
        + _table("<th>shard<th class=n>samples<th class=n>size", shards)
        + f"<p><code>manifest digest {escape(facts['digest'])}</code></p>"
    )

"""The report's tables beside accuracy: every metric of a domain, the endpoint's speed, other tools' logs."""

import html
from collections.abc import Iterable, Sequence

from sightloom.evaluation.gate import Decision
from sightloom.evaluation.result import Measure, Result


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def metrics(result: Result) -> list[str]:
    """Every metric of each domain and of the answers' format."""
    rows = [
        [html.escape(name), *_measured(measure)]
        for name, domain in result.domains.items()
        for measure in domain.metrics.values()
    ]
    rows += [["format", *_measured(measure)] for measure in result.format.values()]
    return ["<h2>Metrics</h2>", table(["domain", "metric", "value", "interval", "n"], rows)]


def speed(result: Result, decision: Decision | None) -> list[str]:
    """Time to the first token and a token after it, in milliseconds, at each number of clients."""
    if not result.perf:
        return []
    rows = [
        [
            str(its.clients), str(its.n), str(its.errors), f"{its.tokens_per_s:.0f}",
            *(f"{1000 * value:.1f}" for value in (its.ttft_p50_s, its.ttft_p95_s, its.tpot_p50_s, its.tpot_p95_s)),
        ]
        for its in result.perf
    ]  # fmt: skip
    titles = ["clients", "requests", "errors", "tokens/s", "TTFT p50, ms", "p95", "TPOT p50, ms", "p95"]
    parts = ["<h2>Speed of the endpoint</h2>", table(titles, rows)]
    if decision is not None and decision.perf:
        judged = [
            [
                f"{its.metric} at {its.clients} clients",
                "–" if its.value is None else f"{its.value:.3f} s",
                "–" if its.baseline is None else f"{its.baseline:.3f} s",
                f"<span class='{its.verdict}' style='color:var(--tone)'>{its.verdict}</span>",
                html.escape(its.reason),
            ]
            for its in decision.perf
        ]
        parts.append(table(["rule", "candidate", "champion", "verdict", ""], judged))
    return parts


def imported(result: Result) -> list[str]:
    """Other tools' measures of the same model, with who measured."""
    if not result.imported:
        return []
    sources = {f"{row.domain}/{row.task}": row.source for row in result.rows if row.source}
    rows = [
        [html.escape(name), html.escape(sources[name]), *_measured(measure, percent=False)]
        for name, its in result.imported.items()
        for measure in its.values()
    ]
    note = '<p class="soft">Asked and judged by another tool; they count in no figure above and block no gate.</p>'
    return [
        "<h2>Imported results</h2>",
        note,
        table(["domain/task", "measured by", "metric", "value", "interval", "n"], rows),
    ]


def _measured(measure: Measure, percent: bool = True) -> list[str]:
    low, high = measure.ci
    if percent and measure.metric not in ("cider", "clip_score"):
        return [
            html.escape(measure.metric), f"{100 * measure.value:.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]",
            str(measure.n),
        ]  # fmt: skip
    return [html.escape(measure.metric), f"{measure.value:.3f}", f"[{low:.3f}, {high:.3f}]", str(measure.n)]

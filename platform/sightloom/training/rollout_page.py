"""A page of rollouts to look through: picture, question, thinking, answer, reward; and the same as an MLflow table."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.model.thinking import parse_response
from sightloom.training.corpus import Corpus
from sightloom.training.rollout_rows import PARTS, Group

PAGES: Final = "rollout-pages"
_MAX_ROWS: Final = 200
_COLUMNS: Final = (
    "uid", "domain", "task", "question", "truth", "thinking", "answer", "reward", *PARTS, "detail", "advantage",
    "length", "finish", "seed",
)  # fmt: skip
_STYLE: Final = (
    "body{font:14px system-ui,sans-serif;margin:1.5rem}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.3rem .5rem;vertical-align:top;text-align:left}"
    "th{position:sticky;top:0;background:#eee}img{max-width:128px;image-rendering:pixelated}"
    "td.text{white-space:pre-wrap;max-width:28rem}tr.right{background:#eefaee}tr.new td{border-top:3px solid #888}"
)


def write(folder: Path, step: int, groups: Sequence[Group], corpus: Corpus) -> None:
    """Write `step-000010.html` and the MLflow table `step-000010.json` of a step's first 200 responses."""
    rows: list[dict[str, Any]] = []
    pictures: list[str] = []
    for group in groups:
        item = corpus.pick(group.row)
        conversation = item.sample.conversation
        question = "\n".join(message.text for message in conversation.messages if message.role == "user")
        truth = "" if conversation.answer is None else str(conversation.answer.value)
        for response, advantage in zip(group.responses, group.advantages, strict=True):
            parsed = parse_response(response.generation.text, thinking_opened=True)
            rows.append(
                {
                    "uid": group.uid,
                    "domain": group.domain,
                    "task": group.task,
                    "question": question,
                    "truth": truth,
                    "thinking": parsed.thinking or "",
                    "answer": parsed.content,
                    "reward": response.reward,
                    **response.parts,
                    "detail": response.detail,
                    "advantage": advantage,
                    "length": response.generation.num_tokens,
                    "finish": response.generation.finish,
                    "seed": str(response.seed),  # wider than the numbers of a browser
                }
            )
            pictures.append("" if item.image is None else _picture(item.image))
    rows, pictures = rows[:_MAX_ROWS], pictures[:_MAX_ROWS]
    name = str(folder / f"step-{step:06d}")
    storage.write(f"{name}.html", page(step, rows, pictures).encode())
    table = {"columns": list(_COLUMNS), "data": [[_plain(row[column]) for column in _COLUMNS] for row in rows]}
    storage.write(f"{name}.json", canonical_json(table))


def page(step: int, rows: Sequence[dict[str, Any]], pictures: Sequence[str]) -> str:
    """The page; all texts are escaped, `pictures` are data addresses or empty. A group's picture is shown once."""
    head = "".join(f"<th>{column}</th>" for column in ("picture", *_COLUMNS))
    body = []
    before = None
    for row, picture in zip(rows, pictures, strict=True):
        new = row["uid"] != before
        before = row["uid"]
        image = f'<img alt="" src="{html.escape(picture)}">' if new and picture else ""
        kind = " ".join(["right"] * (row["accuracy"] == 1) + ["new"] * new)
        cells = "".join(f'<td class="text">{html.escape(_shown(row[column]))}</td>' for column in _COLUMNS)
        body.append(f'<tr class="{kind}"><td>{image}</td>{cells}</tr>')
    title = f"rollouts of step {step}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></html>\n"
    )


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """NaN is no JSON."""
    return None if isinstance(value, float) and value != value else value


def _picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

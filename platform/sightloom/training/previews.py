"""Sample predictions with their pictures: a page to read and a table that MLflow's interface shows."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sightloom.evaluation.examples import Example
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Result, Row

NUM_PREVIEWS: Final = 64
TABLE: Final = "predictions.json"
_PICTURE_PX: Final = 256
_COLUMNS: Final = ("domain", "picture", "question", "expected", "thinking", "answer", "right", "tokens")


def write_previews(result: Result, examples: Sequence[Example], title: str, folder: Path, artifacts: str) -> None:
    """Write `report.html`, and `predictions.json` with up to 64 rows spread over the domains beside their pictures.

    Args:
        artifacts: where the folder will lie among the run's artifacts; the table's pictures are named from there.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(render(Subject(title, {}), result, examples), encoding="utf-8")
    pictures = {example.id: example.image for example in examples}
    rows: list[list[Any]] = []
    for row in _spread(result.rows):
        seen = _picture(pictures.get(row.id), folder / "pictures" / f"{len(rows):02d}.png", artifacts)
        rows.append([row.domain, seen, row.prompt, row.expected, row.reasoning, row.prediction, row.right, row.tokens])
    table = {"columns": list(_COLUMNS), "data": rows}
    (folder / TABLE).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Up to 64 rows, one of each domain in turn."""
    queues: dict[str, list[Row]] = {}
    for row in rows:
        queues.setdefault(row.domain, []).append(row)
    taken: list[Row] = []
    while len(taken) < NUM_PREVIEWS and any(queues.values()):
        taken += [queue.pop(0) for _, queue in sorted(queues.items()) if queue]
    return taken[:NUM_PREVIEWS]


def _picture(data: bytes | None, file: Path, artifacts: str) -> dict[str, Any] | None:
    """MLflow's notion of a picture in a table."""
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as opened:
        shown = opened.convert("RGB")
    shown.thumbnail((_PICTURE_PX, _PICTURE_PX))
    shown.save(file)
    place = f"{artifacts}/pictures/{file.name}"
    return {"type": "image", "filepath": place, "compressed_filepath": place}

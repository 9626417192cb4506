"""A process that scores answers and may be killed: run as a program, one JSON object a line each way.

It reads `{"content": text, "answer": {...}}` and answers `{"value": number or null, "detail": text}`; null: the scorer
itself failed, and the detail says how.
"""

import json
import sys
from typing import Any

from sightloom.objectives.rewards import score
from sightloom.records import Answer


def scored(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; a scorer that raises is a reply, never an end."""
    try:
        reward = score(request["content"], Answer.from_json(request["answer"]))
    except Exception as error:  # noqa: BLE001  whatever a scorer does, the run goes on and the row says why
        return {"value": None, "detail": f"{type(error).__name__}: {error}"}
    return {"value": reward.value, "detail": reward.detail}


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(scored(json.loads(line))) + "\n")
        sys.stdout.flush()

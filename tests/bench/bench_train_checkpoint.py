"""What checkpoints cost: the same steps with one checkpoint every 100 steps and with none, on two Ray Train workers.

Both runs are stages of one warm crew, in rounds that alternate; a checkpoint is written, synced, hashed, sealed and
reported to Ray Train. `cost` is the extra time as a share of the time without; `stall` is what the workers themselves
count as time in which no step went on. The last line is one JSON object.
"""

import json
import os
import runpy
import statistics
import tempfile
from pathlib import Path
from typing import Any

from sightloom import runtime
from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Encoder
from sightloom.model.load import load as load_model
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.run_options import CheckpointOptions, RayOptions
from sightloom.training.trainer import Crew
from sightloom.training.worker import StageOrder

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
STEPS, EVERY, ROUNDS = int(os.environ.get("STEPS", "110")), int(os.environ.get("EVERY", "100")), 3
INSTRUCT = 1
write_shards = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["write_shards"]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = write_shards(folder / "shards", 60, 240)
        manifest = read_manifest(uri)
        start = build_folder("nano", corpus_texts(manifest, 1, 1000), folder / "start", 1)
        index = index_for(manifest, start, Encoder(load_model(str(start)).processor), folder, NullProgress())
        key = f"stages.{INSTRUCT}"
        stage = load(Curriculum, NANO, ["data.manifest=x", f"{key}.steps={STEPS}"]).stages[INSTRUCT]
        store = str(folder / "checkpoints" / "bench")
        runtime.connect(runtime.LOCAL, 3, 200_000_000)

        def once(crew: Crew, number: int, every: int) -> tuple[float, list[dict[str, float]]]:
            saved: list[dict[str, float]] = []

            def hear(event: dict[str, Any]) -> None:
                if event["kind"] == "checkpoint":
                    saved.append(event["metrics"])

            order = StageOrder(
                number=number, digest=f"{number:064x}"[::-1], seed=1, stage=stage, parts=((uri, str(index)),),
                heldout=0.05, start=str(start), folder=str(folder / f"stage-{number}"), store=store,
                checkpoint=CheckpointOptions(every_steps=every), info={},
            )  # fmt: skip
            outcome = crew.run(order, hear)
            return float(outcome["seconds"]), saved

        with Crew(store, RayOptions(workers=2)) as crew:
            once(crew, 0, 10**9)  # warm
            rounds = [(once(crew, 2 * n + 1, EVERY), once(crew, 2 * n + 2, 10**9)) for n in range(ROUNDS)]
        runtime.disconnect()
    cost = statistics.median(mine[0] / calm[0] - 1 for mine, calm in rounds)
    saved = [event for mine, _ in rounds for event in mine[1]]
    stall = sum(event["checkpoint/stall_s"] for event in saved) / sum(mine[0] for mine, _ in rounds)
    result = {
        "name": "train_checkpoint", "cost": round(cost, 4), "stall": round(stall, 4), "target": "< 0.03",
        "step_s": round(statistics.median(calm[0] for _, calm in rounds) / STEPS, 4),
        "stall_s_per_checkpoint": round(statistics.median(event["checkpoint/stall_s"] for event in saved), 4),
        "bytes": int(saved[0]["checkpoint/bytes"]), "checkpoints": len(saved), "steps": STEPS, "every": EVERY,
        "runs": [[round(mine[0], 2), round(calm[0], 2)] for mine, calm in rounds],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The third stage of scoring: the models' towers on what `measure_chunk` cut, one commit a group and chunk.

The driver names what runs here and holds no torch; the actors and tasks load it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sightloom.data.ledger import commit
from sightloom.data.scoring import Row, ScorePlan, problem_of, to_row, to_table
from sightloom.data.signals.banks import BankSpec, mean_labels, write_labels
from sightloom.data.signals.scorers import ClipSpec
from sightloom.errors import SightloomError
from sightloom.later import Later

if TYPE_CHECKING:
    import torch

    from sightloom.data.signals import clip
else:
    torch, clip = Later("torch"), Later("sightloom.data.signals.clip")


class Embed:
    """An actor that holds the models on one device."""

    def __init__(self, plan: ScorePlan, specs: tuple[ClipSpec, ...], device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.plan = plan
        loaded = {spec.loaded: spec for spec in reversed(specs)}  # a scorer serves its masked one too
        models = {name: clip.ClipModel(spec, device) for name, spec in loaded.items()}
        self.models = [models[spec.loaded] for spec in specs]
        self.embeddings = [spec.scorer.embeddings for spec in specs]

    def __call__(self, row: Row) -> Row:
        return embed_chunk(row, self.plan, self.models, self.embeddings)


def encode_labels(work: tuple[ClipSpec, tuple[tuple[BankSpec, str], ...]]) -> None:
    """Encode the prompts of some banks by their scorer, on one core, and keep the label features in their folders."""
    spec, banks = work
    torch.set_num_threads(1)
    model = clip.ClipModel(spec, "cpu")

    def encode(prompts: list[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return model.text_features(prompts).numpy()

    for bank, folder in banks:
        write_labels(folder, mean_labels(bank.bank, encode, model.scale))


def embed_chunk(row: Row, plan: ScorePlan, models: Sequence[Any], keep: Sequence[bool]) -> Row:
    """Score a chunk by every model that misses it and commit one group each.

    Args:
        row: what `measure_chunk` returned.
        plan: the groups, in the order of `models`.
        models: `signals.clip.ClipModel`s.
        keep: for each model, whether its image features are stored.
    """
    header = json.loads(row["header"])
    scored = [number - 1 for number in header.get("missing", ()) if number > 0]
    if "problem" in header or not scored:
        return {"header": row["header"], "payload": b""}
    table = to_table(row["payload"])
    rows_n, kinds = table.column("row").to_numpy(), table.column("kind").to_pylist()
    texts = table.column("text").to_pylist()
    encoded: dict[tuple[int, tuple[int, ...]], Any] = {}  # text features by model and rows
    try:
        for number in scored:
            spec = plan.crops[plan.crop_of[number]]
            column = table.column(f"crop_{plan.crop_of[number]}").combine_chunks()
            crops = _pixels(column, table.num_rows, spec.side)
            wanted = [place for place, kind in enumerate(kinds) if kind in plan.clip_kinds[number]]
            model, same = models[number], (id(models[number]), tuple(wanted))
            result = model.score(crops[wanted], [texts[place] for place in wanted], encoded.get(same))
            encoded[same] = result.text_ND
            group = plan.clips[number]
            scores: list[float | None] = [None] * header["rows"]
            features = np.zeros((header["rows"], model.spec.dim), np.float16) if keep[number] else None
            for place, cosine in zip(wanted, result.cosine_N, strict=True):
                scores[rows_n[place]] = float(cosine)
            if features is not None:
                features[rows_n[wanted]] = result.image_ND
            columns = {group.name: pa.array(scores, pa.float32())}
            facts = {"auc_rolled": result.auc_rolled, "scored": len(wanted)}
            commit(group, header["chunk"], header["last"], pa.table(columns), facts, features)
    except SightloomError as error:
        return to_row({**header, **problem_of(error)})
    return to_row(header)


def _pixels(column: pa.Array, rows: int, side: int) -> np.ndarray[Any, Any]:
    """View a fixed-size binary column as uint8 [rows, side, side, 3]."""
    if not rows:
        return np.zeros((0, side, side, 3), np.uint8)
    size = side * side * 3
    flat = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * size : (column.offset + rows) * size]
    return flat.reshape(rows, side, side, 3)

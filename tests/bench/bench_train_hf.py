"""The trainer against Hugging Face's Trainer on the same conversations of unlike lengths, to the same loss.

Both start from one nano, see the same documents in the same order and as many a step, with AdamW at one constant rate,
in float32 on one thread. Ours reads, decodes and packs on the second core; the peer finds its documents encoded, in
memory, and pads each batch to its longest. What counts is real tokens a second, padding aside, by the clock: it needs a
machine that does nothing else. The losses on the same held-out documents, after and before the training, stand beside
it. The last line is one JSON object.
"""

import copy
import json
import math
import runpy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Document, Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load as load_model
from sightloom.model.modules import module_groups
from sightloom.model.scratch import build_folder
from sightloom.objectives.language import lm_loss
from sightloom.progress import NullProgress
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.loop import fit
from sightloom.training.optim import build_optimizer
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.saver import Hooks, Saver
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.sft import Sft

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
STEPS, ROUNDS, HELD_OUT, RATE, TARGET = 120, 3, 64, 0.001, 1.3
SAME_LOSS = 0.03  # relative; steps hold the same documents but for those where ours closes a pack and the peer a batch
write_shards = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["write_shards"]
ALONE = Workers(0, 1)


class Recorded(Sft):
    """Our objective, keeping the documents of each step in their order."""

    def _build(self, samples: list[Any]) -> Any:
        self.documents.append([self._packer.render(one, self._options.turns, self._mode(one)) for one in samples])
        return super()._build(samples)

    documents: list[list[Document]]


class Documents(torch.utils.data.Dataset[Document]):
    """Encoded documents in memory."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, place: int) -> Document:
        return self._documents[place]


def padded(documents: Sequence[Document], image_token_id: int) -> dict[str, torch.Tensor]:
    """A batch padded to its longest document, as a collator of the peer's kind makes it."""
    longest = max(len(document) for document in documents)
    ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, document in enumerate(documents):
        length = len(document)
        ids[row, :length], mask[row, :length] = document.input_ids, 1
        learnt = document.loss_mask.clone()
        learnt[0] = False
        labels[row, :length] = torch.where(learnt, document.input_ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch["mm_token_type_ids"] = (ids == image_token_id).long()
    shown = [document for document in documents if document.pixel_values is not None]
    if shown:
        batch["pixel_values"] = torch.cat([document.pixel_values for document in shown])  # type: ignore[misc]
        batch["image_grid_thw"] = torch.cat([document.image_grid_thw for document in shown])  # type: ignore[misc]
    return batch


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = write_shards(folder / "shards", 200, 300)
        manifest = read_manifest(uri)
        start = build_folder("nano", corpus_texts(manifest, 1, 1000), folder / "start", 1)
        vlm = load_model(str(start))
        encoder = Encoder(vlm.processor)
        corpus = Corpus(((uri, str(index_for(manifest, start, encoder, folder, NullProgress()))),), 0.1)
        stage = load(
            Curriculum, NANO,
            ["data.manifest=x", "stages.1.batch.packs=1",
             f"stages.1.train={{vision: {RATE}, fusion: {RATE}, decoder: {RATE}}}",
             "stages.1.optim={kind: adamw, betas: [0.9, 0.95], weight_decay: 0.05, warmup: 0.0, schedule: constant}"],
        ).stages[1]  # fmt: skip
        packer = Packer(encoder, vlm.model.config)

        recorded = Recorded.__new__(Recorded)
        recorded.documents = []
        Recorded.__init__(recorded, stage.objective, stage, corpus, packer, ALONE, 1)  # type: ignore[arg-type]
        for step in range(STEPS):
            recorded.batches(step)
        recorded.close()
        steps = recorded.documents[:STEPS]
        documents = [document for step in steps for document in step]
        tokens = sum(len(document) for document in documents)
        batch_size = math.ceil(len(documents) / STEPS)
        rows = corpus.select(None, held_out=True)[:HELD_OUT]
        held_out = [packer.render(corpus.pick(int(row)), "all", None) for row in rows]

        def loss(model: torch.nn.Module) -> float:
            wrapped, total, num = TrainableVLM(model), 0.0, 0
            with torch.no_grad():
                for begin in range(0, len(held_out), 16):
                    pack = packer.pack(held_out[begin : begin + 16])
                    total += float(lm_loss(wrapped(pack).logprobs))
                    num += pack.num_labels
            return total / num

        def ours() -> tuple[float, float]:
            model = TrainableVLM(copy.deepcopy(vlm.model)).train()
            named = dict(model.named_parameters())
            groups = module_groups(model)
            optimizer = build_optimizer(named, groups, stage.train.by_group(), stage.optim, ALONE)
            began = time.perf_counter()
            objective = Sft(stage.objective, stage, corpus, packer, ALONE, 1)  # type: ignore[arg-type]
            saver = Saver(
                CheckpointStore(str(folder)), "bench", "", CheckpointOptions(every_minutes=60), ALONE, model, optimizer,
                Hooks(), lambda _: None,
            )  # fmt: skip
            place = Position(0, {})
            fit(model, objective, optimizer, stage.optim, STEPS, place, ALONE, saver, lambda *_: None, lambda _: None)
            rate = tokens / (time.perf_counter() - began)
            objective.close()
            return rate, loss(model.vlm)

        def peer() -> tuple[float, float]:
            model = copy.deepcopy(vlm.model).train()
            model.config._attn_implementation = "sdpa"
            for part in (model.config.text_config, model.config.vision_config):
                part._attn_implementation = "sdpa"
            arguments = TrainingArguments(
                output_dir=str(folder / "peer"), per_device_train_batch_size=batch_size, num_train_epochs=1,
                learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.05, adam_beta2=0.95, max_grad_norm=1.0,
                optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True,
                remove_unused_columns=False, disable_tqdm=True, dataloader_num_workers=0,
            )  # fmt: skip
            trainer = InOrder(
                model, arguments, train_dataset=Documents(documents),
                data_collator=lambda batch: padded(batch, encoder.image_token_id),
            )  # fmt: skip
            began = time.perf_counter()
            trainer.train()
            rate = tokens / (time.perf_counter() - began)
            model.config._attn_implementation = vlm.model.config._attn_implementation
            for part in ("text_config", "vision_config"):
                kept = getattr(vlm.model.config, part)._attn_implementation
                getattr(model.config, part)._attn_implementation = kept
            return rate, loss(model)

        before = loss(vlm.model)
        runs = [(ours(), peer()) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
    real = tokens / sum(
        batch_size * max(len(one) for one in documents[begin : begin + batch_size])
        for begin in range(0, len(documents), batch_size)
    )
    apart = abs(runs[0][0][1] - runs[0][1][1]) / runs[0][1][1]
    if apart > SAME_LOSS:
        raise SystemExit(f"not the same loss: ours {runs[0][0][1]:.4f}, peer {runs[0][1][1]:.4f}")
    result = {
        "name": "train_hf", "ours": round(mine), "peer": round(theirs), "unit": "real tokens per second",
        "ratio": round(statistics.median(own[0] / other[0] for own, other in runs), 3), "target": TARGET,
        "loss": {"before": round(before, 4), "ours": round(runs[0][0][1], 4), "peer": round(runs[0][1][1], 4)},
        "peer_share_of_real_tokens": round(real, 3), "runs": [[round(a[0]), round(b[0])] for a, b in runs],
    }  # fmt: skip
    print(json.dumps(result))


class InOrder(Trainer):
    """The peer, taking documents in the order in which ours does."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(dataset if dataset is not None else self.train_dataset)


if __name__ == "__main__":
    main()

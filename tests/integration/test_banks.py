"""Embeddings, banks and heads on a real Ray: scored once, judged again without opening a picture."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.integration.raw import picture, put_tars, write_recipe

from sightloom.config import load
from sightloom.data.curation import Settings, curate, scored_rows
from sightloom.data.embedding import embed_chunk
from sightloom.data.embeddings import open_embeddings
from sightloom.data.fetch import inputs
from sightloom.data.prepare import prepare, source_files
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import jobs, measure_chunk, read
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.data.signals.clip import ClipModel
from sightloom.data.signals.prompts import PROMPTS
from sightloom.data.steps import run_dedup, run_score, run_select
from sightloom.progress import NullProgress

QUIET, PLAIN = NullProgress(), Settings()
ROWS = 140  # two files of 70: chunks of 32, 32 and 6
COSINE = 1e-4  # what the issue asks; fp32, worst measured below 1e-6
pytestmark = pytest.mark.usefixtures("ray_session")


def recipe(tmp_path: Path, scorer: Path, embeddings: bool, workers: int, **more: Any) -> Recipe:
    clip = [{"name": "tiny", "model": f"local-dir:{scorer}", "embeddings": embeddings, "licence": "mit"}]
    score = {"chunk_rows": 32, "clip": clip, "workers": {"scorers": workers}}
    score |= {name: more.pop(name) for name in ("banks", "heads") if name in more}
    path = write_recipe(
        tmp_path / "r.yaml", str(tmp_path / "raw"), str(tmp_path / "out"), scorer, score=score, dedup={}, **more
    )
    return load(Recipe, path)


def one_pass(scorer: Path, head: torch.Tensor) -> dict[str, Any]:
    """Cosine, `nsfw_unsafe` and `head_taste` of all pictures by open_clip alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{scorer}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{scorer}")
    model.eval()
    with torch.no_grad():
        pictures = [preprocess(Image.open(io.BytesIO(picture(n))).convert("RGB")) for n in range(ROWS)]
        image = model.encode_image(torch.stack(pictures), normalize=True)
        text = model.encode_text(tokenizer([f"scene number {n}" for n in range(ROWS)]), normalize=True)
        means = [model.encode_text(tokenizer(list(p)), normalize=True).mean(0) for p in PROMPTS["nsfw"].values()]
        labels = torch.nn.functional.normalize(torch.stack(means), dim=-1)
        scale = model.logit_scale.exp()
        return {
            "image": image.numpy(),
            "clip_tiny": (image * text).sum(-1).numpy(),
            "nsfw_unsafe": (scale * image @ labels.T).softmax(-1)[:, 1].numpy(),
            "head_taste": (image @ head.T)[:, 0].numpy(),
            "scale": float(scale),
        }


def score_here(wanted: Recipe) -> None:
    """Score a corpus by one worker, which is this process."""
    prepared = prepare(wanted, False)
    models = [ClipModel(spec, "cpu") for spec in prepared.specs]
    for job in jobs([file for files in source_files(prepared.recipe) for file in files], [{}, {}]):
        for row in read({"job": pickle.dumps(job)}):
            embed_chunk(measure_chunk(row, prepared.plan), prepared.plan, models, [False])


def scores(folder: Path) -> dict[str, Any]:
    """The score columns of every fragment, by chunk."""
    return {path.name[:22]: pq.read_table(path).to_pydict() for path in sorted((folder / "data").iterdir())}


def test_a_new_bank_and_head_on_a_scored_corpus_open_no_picture_and_equal_one_pass(
    tmp_path: Path, tiny_clip: Path
) -> None:
    put_tars(str(tmp_path / "raw"), 2, ROWS // 2)
    score_here(recipe(tmp_path, tiny_clip, False, 1))
    (plain,) = (tmp_path / "out" / "scores").glob("clip_tiny-*")
    assert not (plain / "emb").exists()
    run_score(recipe(tmp_path, tiny_clip, True, 4), QUIET, PLAIN)  # scored again, in its own folder
    whole = plain.with_name(plain.name + "-emb")
    assert scores(whole) == scores(plain) and len(scores(whole)) == 6
    assert len(list((whole / "emb").iterdir())) == 6

    tars, before = sorted((tmp_path / "raw").iterdir()), {}
    for tar in tars:  # of the same size and time, so that the corpus is known, but nothing can be read of it
        before[tar], stat = tar.read_bytes(), tar.stat()
        tar.write_bytes(b"\0" * stat.st_size)
        os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    save_file({"weight": head}, tmp_path / "taste.safetensors")
    expected = one_pass(tiny_clip, head)
    more: dict[str, Any] = {
        "banks": [{"name": "nsfw", "scorer": "tiny"}, {"name": "domain", "scorer": "tiny"}],
        "heads": [{"name": "taste", "scorer": "tiny", "weights": str(tmp_path / "taste.safetensors")}],
        "select": {
            "rules": {"nsfw": f"nsfw_unsafe < {float(np.median(expected['nsfw_unsafe']))}"},
            "top": [{"by": "head_taste", "fraction": 0.5, "per": "domain_top"}],
        },
    }
    wanted = recipe(tmp_path, tiny_clip, True, 1, **more)
    result = run_score(wanted, QUIET, PLAIN)
    assert (result.rows_in, result.kept) == (ROWS, ROWS)
    prepared = prepare(wanted, False)
    scored = scored_rows(prepared, inputs(prepared.recipe))
    table = scored.read(["source_key", "clip_tiny", "nsfw_safe", "nsfw_unsafe", "head_taste", "domain_top"])
    assert [int(key) for key in table.column("source_key").to_pylist()] == list(range(ROWS))
    assert set(table.column("domain_top").to_pylist()) == {"art"}  # as the source declares
    stored = open_embeddings(scored, "clip_tiny").read()
    assert np.abs(stored - expected["image"]).max() <= 2**-11  # float16 of values below 1
    # a share moves by a quarter of what two logits move apart, a head by its weights' length times what a vector moves
    atol = {
        "clip_tiny": COSINE,
        "nsfw_unsafe": expected["scale"] * 2**-12,
        "head_taste": float(head.norm()) * 2**-11,
    }
    for name, tolerance in atol.items():
        assert np.abs(table.column(name).to_numpy() - expected[name]).max() <= tolerance, name
    run_dedup(wanted, QUIET, PLAIN, "r.yaml")
    selected = run_select(wanted, QUIET, PLAIN, "r.yaml")
    assert ROWS // 2 - 2 <= selected.dropped["nsfw"] <= ROWS // 2 + 2

    for tar in tars:
        stat = tar.stat()
        tar.write_bytes(before[tar])
        os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").rglob("*") if path.is_file()}
    packed = curate(wanted, QUIET)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert packed.kept == selected.kept and packed.licences == {"tiny": "mit", "head_taste": None}
    manifest = read_manifest(packed.manifest)
    assert manifest.columns["nsfw_unsafe"]["group"] == "bank_nsfw" and set(manifest.fingerprints["scores"]) == {
        "base", "clip_tiny", "bank_nsfw", "bank_domain", "head_taste",
    }  # fmt: skip
    ours = {row["source_key"]: row for row in read_table(manifest).to_pylist()}
    for row in table.to_pylist():
        if row["source_key"] in ours:
            assert {name: ours[row["source_key"]][name] for name in atol} == {name: row[name] for name in atol}

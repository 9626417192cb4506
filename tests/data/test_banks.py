import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch

from sightloom.config import validate
from sightloom.data import derived as derived_module
from sightloom.data.derived import Derived, blocks, derive, spread, unlabelled
from sightloom.data.embedding import encode_labels
from sightloom.data.ledger import Group, commit, committed, read_chunk
from sightloom.data.prepare import prepare
from sightloom.data.recipe import Recipe
from sightloom.data.signals.banks import BankSpec, read_labels
from sightloom.data.signals.clip import ClipModel
from sightloom.data.signals.config import Bank, ClipScorer
from sightloom.data.signals.prompts import PROMPTS
from sightloom.data.signals.scorers import ClipSpec, resolve
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import UserMistake

FILES = [SourceFile("parquet", f"/raw/{n}", 1, "v", (), 32, f"{n:016x}") for n in range(2)]
DOMAINS = ["document", None, None, "ui", None]


@pytest.fixture(scope="module")
def spec(tiny_clip: Path) -> ClipSpec:
    return resolve(ClipScorer(name="tiny", model=f"local-dir:{tiny_clip}", embeddings=True))


@pytest.fixture(scope="module")
def model(spec: ClipSpec) -> ClipModel:
    return ClipModel(spec, "cpu")


def crops(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)


def stored(model: ClipModel, seed: int) -> np.ndarray[Any, Any]:
    """Five rows as they are committed: the last one was not scored."""
    features = model.image_features(crops(seed)).detach().numpy()
    return np.concatenate([features, np.zeros((1, 32), np.float32)]).astype(np.float16)


def put(out: Path, spec: ClipSpec, model: ClipModel, bank: Bank) -> tuple[Group, Derived]:
    base, source = Group.make(str(out), "base", {}), Group.make(str(out), "clip_tiny", {}, "-emb")
    for number, file in enumerate(FILES):
        for index in range(2):
            chunk, last = file.chunk_id(index), index == 1
            commit(base, chunk, last, pa.table({"domain": DOMAINS}), {"status": {"ok": 5}, "src": {}})
            table = pa.table({"clip_tiny": [0.1] * 5})
            commit(source, chunk, last, table, {"scored": 4}, stored(model, 2 * number + index))
    own = BankSpec(bank, spec.identity())
    return base, Derived(Group.make(str(out), own.group, own.identity()), source, own, spec)


def zero_shot(model: ClipModel, prompts: dict[str, tuple[str, ...]], pixels: Any, scale: float) -> Any:
    """Shares as open_clip's zero-shot example computes them, in one pass from the pictures, nothing stored."""
    clip, tokenizer = model.model, open_clip.get_tokenizer(model.spec.scorer.model)
    with torch.no_grad():
        labels = []
        for texts in prompts.values():
            mean = clip.encode_text(tokenizer(list(texts)), normalize=True).mean(0)
            labels.append(mean / mean.norm())
        image = clip.encode_image(model.pixels(pixels), normalize=True)
        return (scale * image @ torch.stack(labels, 1)).softmax(-1).numpy()


@pytest.mark.parametrize(("name", "scale"), [("domain", None), ("nsfw", 100.0), ("watermark", 1.0)])
def test_shares_from_stored_embeddings_equal_a_zero_shot_pass_over_the_pictures(
    tmp_path: Path, spec: ClipSpec, model: ClipModel, name: str, scale: float | None
) -> None:
    base, own = put(tmp_path, spec, model, Bank(name=name, scorer="tiny", scale=scale))
    waiting = blocks([own], base, FILES, 32)
    for work in unlabelled(waiting):
        encode_labels(work)
    assert [derive(block) for block in waiting] == [20]
    assert blocks([own], base, FILES, 32) == [] and committed(own.group).keys() == committed(own.source).keys()
    used = model.scale if scale is None else scale
    # float16 rounds a feature by 2^-11 of itself at most, so a vector that is made unit again moves no further, nor a
    # cosine with it; a share moves by a quarter of what two logits move apart. Worst measured: a tenth of it
    atol = 0.25 * 2 * used * 2**-11
    for number, file in enumerate(FILES):
        for index in range(2):
            table, _ = read_chunk(own.group, file.chunk_id(index), index == 1)
            expected = zero_shot(model, PROMPTS[name], crops(2 * number + index), used)
            ours = np.stack([table.column(f"{name}_{label}").to_numpy()[:4] for label in PROMPTS[name]], 1)
            assert np.abs(ours - expected).max() <= atol
            assert np.abs(ours.sum(1) - 1).max() < 1e-6
            top = [list(PROMPTS[name])[place] for place in ours.argmax(1)]
            if name == "domain":
                top = [own_domain or guess for own_domain, guess in zip(DOMAINS, top, strict=False)]
            assert table.column(f"{name}_top").to_pylist() == [*top, None]
            assert table.column(f"{name}_{next(iter(PROMPTS[name]))}").to_pylist()[4] is None


def test_the_bits_of_a_chunk_do_not_depend_on_its_block_or_on_when_it_was_computed(
    tmp_path: Path, spec: ClipSpec, model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank(name="colour", scorer="tiny", prompts={"red": ("a {} square",), "deep_blue": ("{}", "a {} circle")})
    assert bank.prompts_of("deep_blue") == ("deep blue", "a deep blue circle")
    base, whole = put(tmp_path / "a", spec, model, bank)
    encode_labels(*unlabelled(blocks([whole], base, FILES, 32)))
    (block,) = blocks([whole], base, FILES, 32)
    derive(block)
    base, pieces = put(tmp_path / "b", spec, model, bank)
    encode_labels(*unlabelled(blocks([pieces], base, FILES[:1], 32)))
    monkeypatch.setattr(derived_module, "BLOCK_ROWS", 32)
    for block in blocks([pieces], base, FILES[:1], 32):
        derive(block)
    later = blocks([pieces], base, FILES, 32)
    assert len(later) == 2 and unlabelled(later) == []  # the label features are kept, not computed again
    for block in reversed(later):
        derive(block)
    for file in FILES:
        for index in range(2):
            chunk = file.chunk_id(index), index == 1
            assert read_chunk(whole.group, *chunk)[0].equals(read_chunk(pieces.group, *chunk)[0])
    assert read_labels(whole.group.folder).features_LD.shape == (2, 32)


def test_a_chunk_without_rows_or_without_scored_rows_has_null_columns(model: ClipModel, spec: ClipSpec) -> None:
    types = {"a": "float", "b": "string"}

    def nothing(image_ND: Any) -> dict[str, Any]:
        assert image_ND.shape == (0, 32)
        return {"a": np.zeros(0, np.float32), "b": np.zeros(0, object)}

    for rows in (0, 3):
        found = spread(types, np.zeros((rows, 32), np.float16), nothing)
        assert found["a"].null_count == found["b"].null_count == rows
        assert (found["a"].type, found["b"].type) == (pa.float32(), pa.string())


def recipe(tmp_path: Path, tiny_clip: Path, score: dict[str, Any], **more: Any) -> Recipe:
    clip = [{"name": "tiny", "model": f"local-dir:{tiny_clip}", "embeddings": True}]
    (tmp_path / "raw").mkdir(exist_ok=True)
    data = {"name": "p", "out": str(tmp_path / "out"), "source": [{"kind": "webdataset", "uri": str(tmp_path / "raw")}]}
    return validate(Recipe, {**data, "score": {"clip": clip, **score}, **more}, "test")


NSFW = {"banks": [{"name": "nsfw", "scorer": "tiny"}]}
RULES = {"select": {"rules": {"nsfw": "nsfw_unsafe < 0.5"}}}


def test_rules_may_name_the_columns_of_banks_before_anything_is_scored(tmp_path: Path, tiny_clip: Path) -> None:
    found = prepare(recipe(tmp_path, tiny_clip, NSFW, **RULES), False)
    assert found.columns["nsfw_unsafe"] == "float" and found.columns["nsfw_top"] == "string"
    assert found.columns_of_scores == ("clip_tiny", "nsfw_safe", "nsfw_unsafe")
    assert [group.name for group in found.groups] == ["base", "clip_tiny", "bank_nsfw"]
    again = prepare(
        recipe(tmp_path, tiny_clip, {"banks": [*NSFW["banks"], {"name": "domain", "scorer": "tiny"}]}), False
    )
    assert again.groups[:3] == found.groups  # another bank changes no other group


def test_storing_embeddings_changes_the_folder_of_a_scorer_and_not_its_fingerprint(
    tmp_path: Path, tiny_clip: Path
) -> None:
    without = recipe(tmp_path, tiny_clip, {"clip": [{"name": "tiny", "model": f"local-dir:{tiny_clip}"}]})
    plain, whole = prepare(without, False), prepare(recipe(tmp_path, tiny_clip, {}), False)
    assert plain.groups[1].fingerprint == whole.groups[1].fingerprint and plain.identity == whole.identity
    assert whole.groups[1].folder == plain.groups[1].folder + "-emb"
    whole.groups[1].describe({}, {})  # only that one was scored: it serves without them asked for
    assert prepare(without, False).groups[1] == whole.groups[1]
    plain.groups[1].describe({}, {})
    assert prepare(without, False).groups[1] == plain.groups[1]


@pytest.mark.parametrize(
    ("score", "more", "words"),
    [
        ({}, RULES, r"rule 'nsfw'.* needs column 'nsfw_unsafe'\n.*have: .*; add the bank to score.banks"),
        ({}, {"select": {"rules": {"x": "head_a > 5"}}}, r"needs column 'head_a'\n.*; add the head to score.heads"),
        (
            {"banks": [{"name": "nsfw", "scorer": "b16"}]},
            {},
            r"bank 'nsfw' names no scorer 'b16'\nscore.clip has: tiny",
        ),
        ({"banks": [{"name": "mood", "scorer": "tiny"}]}, {}, "no built-in prompts for bank 'mood'"),
        ({"banks": [{"name": "a", "scorer": "tiny", "prompts": {"x": ["y"]}}]}, {}, "needs two labels or more"),
        ({"banks": [{"name": "a", "scorer": "tiny", "prompts": {"x": ["y"], "z": []}}]}, {}, "'z' of bank 'a' has no"),
        ({"banks": [{"name": "a", "scorer": "tiny", "prompts": {"x": ["y"], "top": ["y"]}}]}, {}, "'top' is no label"),
        ({"banks": [NSFW["banks"][0]] * 2}, {}, "two entries of score.banks have the same name"),
        (
            {"banks": [{"name": "text", "scorer": "tiny", "prompts": {"lang": ["y"], "z": ["y"]}}]},
            {},
            "'bank_text' makes a column 'text_lang', which is there",
        ),
    ],
)
def test_a_mistake_about_banks_is_named(
    tmp_path: Path, tiny_clip: Path, score: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserMistake) as caught:
        prepare(recipe(tmp_path, tiny_clip, score, **more), False)
    assert re.search(words, f"{caught.value.message}\n{caught.value.hint}", re.DOTALL)


def test_a_bank_without_stored_embeddings_says_what_to_set(tmp_path: Path) -> None:
    score = {"clip": [{"name": "b32", "model": "ViT-B-32"}], "banks": [{"name": "nsfw", "scorer": "b32"}]}
    with pytest.raises(UserMistake, match=r"^bank 'nsfw' needs embeddings of 'b32'") as caught:
        prepare(recipe(tmp_path, tmp_path, score), False)
    assert caught.value.hint == "set score.clip.0.embeddings=true (1.0 kB a row) and score again"

"""The whole curation on a real Ray."""

import io
import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from tests.integration.curations import check_sums, files_under, put_raw, questions, raw_tar, recipe

from sightloom import storage
from sightloom.data.curation import Settings, curate
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.shards.verify import verify
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

from ..raw_pairs import scene_bytes

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_corpus_becomes_shards_once_and_again_the_same(tmp_path: Path, tiny_clip: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    wanted = recipe(raw, str(tmp_path / "out"), tiny_clip)
    result = curate(wanted, NullProgress())
    check_sums(result)
    assert result.rows_in == 180 and result.failed == 0
    planted = {"truncated_image": 2, "empty_text": 2, "small": 2, "dup_image": 2}
    assert {name: result.dropped[name] for name in planted} == planted
    assert result.kept == 40 + 66  # every question; half of the 132 pairs that are left

    manifest = read_manifest(result.manifest)
    table = read_table(manifest)
    reader = SampleReader(manifest)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    model.eval()
    pairs = [row for row in table.to_pylist() if row["kind"] == "pair"]
    for row in [row for row in pairs if row["source_key"][-2:] not in ("00", "03")][:20]:  # the planted copies
        sample = reader.read(row["shard"], row["offset"], row["size"])
        assert sample.image == scene_bytes(int(row["source_key"])) and sample.image is not None
        with torch.no_grad():
            image = model.encode_image(preprocess(Image.open(io.BytesIO(sample.image)).convert("RGB"))[None], True)
            text = model.encode_text(tokenizer([sample.text]), True)
        assert abs(float((image * text).sum()) - row["clip_tiny"]) <= 1e-4
    assert all(row["clip_tiny"] is None for row in table.to_pylist() if row["kind"] == "conversation")

    page = Path(result.report).read_text()
    assert "default-src 'none'" in page and "<script" not in page and "http://" not in page
    report = json.loads(Path(result.report).with_name("report.json").read_text())
    assert report["rows_in"] == 180 and report["domains"]["ui"]["kept"] == 40

    before = files_under(tmp_path / "out")
    again = curate(wanted, NullProgress())
    assert files_under(tmp_path / "out") == before
    assert again.to_json() | {"samples_per_s": 0} == result.to_json() | {"samples_per_s": 0}
    other = curate(recipe(raw, str(tmp_path / "other"), tiny_clip), NullProgress())
    assert read_manifest(other.manifest).digest == manifest.digest

    half = recipe(raw, str(tmp_path / "out"), tiny_clip, select={"rules": {"small": "min(width, height) >= 10"}})
    with pytest.raises(UserMistake, match="made by another recipe"):
        curate(half, NullProgress())
    assert files_under(tmp_path / "out") == before
    replaced = curate(half, NullProgress(), settings=Settings(replace=True))
    check_sums(replaced)
    scores = {name: value for name, value in before.items() if name.startswith("scores/")}
    now = files_under(tmp_path / "out")
    assert {name: now[name] for name in now if name.startswith("scores/")} == scores  # nothing was scored again


def test_a_lost_commit_is_scored_again_and_a_lost_shard_is_packed_again(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    wanted = recipe(raw, str(tmp_path / "out"))
    first = read_manifest(curate(wanted, NullProgress()).manifest)
    commits = sorted((tmp_path / "out" / "scores").glob("*/commit/*.json"))
    for path in commits[::3]:
        path.unlink()
    shards = tmp_path / "out" / "shards" / "pool"
    for name in ("manifest.json", "pool-000001.tar"):
        (shards / name).unlink()
    second = read_manifest(curate(wanted, NullProgress()).manifest)
    assert second.digest == first.digest
    assert verify(second, True, NullProgress()).problems == ()


def test_nothing_of_another_plan_is_taken_for_ones_own(tmp_path: Path) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "out")
    put_raw(raw)
    wanted = recipe(raw, out)
    first = read_manifest(curate(wanted, NullProgress()).manifest)
    Path(first.uri).unlink()  # as if killed before the manifest: another plan may now take the place
    other = curate(recipe(raw, out, pack={"max_samples": 60, "order": "source"}), NullProgress())
    check_sums(other)
    with pytest.raises(UserMistake, match=r"made by another recipe: pack\.order source -> auto"):
        curate(wanted, NullProgress())
    again = curate(wanted, NullProgress(), settings=Settings(replace=True))
    check_sums(again)
    assert read_manifest(again.manifest).digest == first.digest
    fewer = recipe(raw, out, select={**wanted.select.model_dump(), "top": [{"by": "sharpness", "fraction": 0.2}]})
    with pytest.raises(UserMistake, match=r"select\.top\.0\.fraction 0\.5 -> 0\.2") as caught:
        curate(fewer, NullProgress())
    assert caught.value.hint == "choose another name, or give --replace"
    Path(first.uri).write_text(Path(first.uri).read_text().replace('"failed":0', '"failed":1'))
    with pytest.raises(UserMistake, match="does not match its own digest"):
        curate(wanted, NullProgress())
    assert (
        read_manifest(curate(wanted, NullProgress(), settings=Settings(replace=True)).manifest).digest == first.digest
    )


def test_a_whole_run_makes_series_of_reencoded_shards(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    pack = {
        "max_samples": 30,
        "group_by": "domain",
        "multiple_of": 2,
        "image": {"max_side": 24, "format": "webp", "quality": 50},
    }
    result = curate(recipe(raw, str(tmp_path / "out"), pack=pack), NullProgress())
    check_sums(result)
    manifest = read_manifest(result.manifest)
    for domain, samples in manifest.totals.domains.items():
        names = [shard.name for shard in manifest.shards if shard.domains == {domain: shard.samples}]
        assert names == [f"pool-{domain}-{number:06d}.tar" for number in range(len(names))]
        assert len(names) % 2 == 0 and len(names) >= samples / 30
    assert sum(shard.samples for shard in manifest.shards) == result.kept
    rows = [row for row in read_table(manifest).to_pylist() if row["image_ext"] == "webp"]
    assert rows and all(max(row["width"], row["height"]) <= 24 for row in rows)
    with pytest.raises(UserMistake, match=r"pack\.group_by: 'sharpness' is float, which names no series"):
        curate(recipe(raw, str(tmp_path / "x"), pack={"group_by": "sharpness"}), NullProgress())
    with pytest.raises(UserMistake, match=r"pack\.group_by: 'domian' is not a column"):
        curate(recipe(raw, str(tmp_path / "x"), pack={"group_by": "domian"}), NullProgress())


def test_bad_input_is_a_clear_mistake_and_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    put_raw(str(raw))
    with pytest.raises(UserMistake, match="no files at"):
        curate(recipe(str(tmp_path / "nowhere"), str(tmp_path / "out")), NullProgress())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserMistake, match="file"):
        curate(recipe(str(raw), str(tmp_path / "file" / "out")), NullProgress())
    rules = {"select": {"rules": {"x": "widht > 1"}}}
    with pytest.raises(UserMistake, match="'widht'"):
        curate(recipe(str(raw), str(tmp_path / "out"), **rules), NullProgress())
    (raw / "questions.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(UserMistake, match="not a readable parquet"):
        curate(recipe(str(raw), str(tmp_path / "out")), NullProgress())
    assert not (tmp_path / "out" / "shards").exists()
    storage.write(str(raw / "questions.parquet"), questions())
    (raw / "pairs-1.tar").write_bytes(raw_tar(100, 70)[:40_000])
    result = curate(recipe(str(raw), str(tmp_path / "out")), NullProgress())
    check_sums(result)
    assert result.dropped["tar_truncated"] == 1


def test_nothing_kept_is_an_empty_manifest_that_says_why(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    rules = {"select": {"rules": {"huge": "width > 5000"}}}
    result = curate(recipe(raw, str(tmp_path / "out"), **rules), NullProgress())
    assert (result.kept, result.shards) == (0, 0) and result.dropped["huge"] > 100
    with pytest.raises(UserMistake, match="lists no shards"):
        read_table(read_manifest(result.manifest))

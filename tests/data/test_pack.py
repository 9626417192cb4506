import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightloom.config import validate
from sightloom.data.decode import decode
from sightloom.data.measure import measure
from sightloom.data.shards.config import Encoding, PackConfig
from sightloom.data.shards.encode import encode
from sightloom.data.shards.foreign import foreign_files
from sightloom.data.shards.manifest import Shard
from sightloom.data.shards.pack import ShardJob, build
from sightloom.data.shards.plan import plan_shards, shard_slices
from sightloom.data.shards.reader import split_members
from sightloom.data.shards.sizes import RECORD
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import SourceFile, list_files, read_chunks
from sightloom.data.sources.config import WebDatasetSource
from sightloom.errors import UserMistake

ORIENTATION = 0x0112


def noise(number: int, width: int, height: int, form: str = "JPEG", **more: Any) -> bytes:
    """A picture that compresses badly; with `orientation` in its EXIF if one is given."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image, sink = Image.fromarray(pixels), io.BytesIO()
    if "orientation" in more:
        exif = Image.Exif()
        exif[ORIENTATION] = more.pop("orientation")
        more["exif"] = exif
    image.save(sink, form, **more)
    return sink.getvalue()


def kept_rows(path: Path) -> tuple[pa.Table, SourceFile]:
    """What scoring and selection leave of one tar."""
    (file,) = list_files(WebDatasetSource(kind="webdataset", uri=str(path)), 4096)
    (chunk,) = read_chunks(file, frozenset())
    table = measure(chunk.table, file.uri, DecodeLimits(), {}, (), frozenset()).table
    assert set(table.column("status").to_pylist()) == {"ok"}
    return table.append_column("_file", pa.array([0] * table.num_rows, pa.int32())), file


def packed(path: Path, out: Path, **config: Any) -> dict[str, tuple[dict[str, Any], pa.Table, list[dict[str, bytes]]]]:
    """Pack a tar: by shard its commit, its table, its samples' members."""
    import pyarrow.parquet as pq

    table, file = kept_rows(path)
    settings = validate(PackConfig, config, "test")
    encoding = None if settings.image == "keep" else settings.image
    found = {}
    for name, rows in shard_slices(plan_shards(table, settings, 0, 0), "t"):
        built = build(ShardJob(name, rows, {0: file}, (), str(out), str(out / "c" / name), encoding))
        shard = pq.read_table(out / f"{name}.parquet")
        data = (out / f"{name}.tar").read_bytes()
        bounds, sizes = rows.column("bound_bytes").to_pylist(), shard.column("size").to_pylist()
        assert len(data) <= settings.max_mb * 1e6 and len(data) <= sum(bounds) + 2 * RECORD
        assert all(size <= bound for size, bound in zip(sizes, bounds, strict=True))
        places = zip(shard.column("offset").to_pylist(), sizes, strict=True)
        found[name] = (built, shard, [split_members(data[first : first + size], name, first) for first, size in places])
    return found


def test_each_value_of_a_column_becomes_a_series_numbered_by_itself(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    samples = [
        (f"{n:02d}", {"png": scene(n), "txt": b"a cat", "json": json.dumps({"domain": domain}).encode()})
        for n, domain in enumerate(["art"] * 5 + ["User Interface"] * 3 + ["ui"] * 2)
    ]
    found = packed(make_tar(tmp_path / "a.tar", samples), tmp_path / "out", group_by="domain", max_samples=3)
    assert {name: shard.num_rows for name, (_, shard, _) in found.items()} == {
        "t-art-000000": 2, "t-art-000001": 3, "t-ui-000000": 2, "t-user-interface-000000": 3,
    }  # fmt: skip
    assert {name: set(shard.column("domain").to_pylist()) for name, (_, shard, _) in found.items()} == {
        "t-art-000000": {"art"}, "t-art-000001": {"art"}, "t-ui-000000": {"ui"},
        "t-user-interface-000000": {"User Interface"},
    }  # fmt: skip
    multiple = packed(tmp_path / "a.tar", tmp_path / "two", group_by="domain", multiple_of=2, equal="samples")
    assert [shard.num_rows for _, shard, _ in multiple.values()] == [2, 3, 1, 1, 1, 2]


def test_shards_in_source_order_are_of_equal_size_though_pictures_grow(tmp_path: Path, make_tar: Any) -> None:
    sides = [12 + n // 32 for n in range(2000)]
    samples = [(f"{n:04d}", {"jpg": noise(n, side, side), "txt": b"t" * side**2}) for n, side in enumerate(sides)]
    found = packed(make_tar(tmp_path / "a.tar", samples), tmp_path / "out", order="source", max_mb=4)
    sizes = [built["shard"]["bytes"] for built, _, _ in found.values()]
    assert len(sizes) >= 3 and min(sizes) >= 0.99 * max(sizes) and max(sizes) <= 4_000_000


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.text(max_size=60), st.booleans()), min_size=1,
             max_size=8, unique_by=lambda drawn: drawn[2])
)  # fmt: skip
def test_no_sample_outgrows_its_bound(tmp_path_factory: Any, drawn: list[tuple[int, int, str, bool]]) -> None:
    from ..raw_pairs import tar_bytes

    folder = tmp_path_factory.mktemp("bound")
    samples = []
    for number, (width, height, text, with_uid) in enumerate(drawn):
        words = text.replace("\0", "").encode("utf-8", "replace").decode() + " x"
        own = {"note": words, **({"uid": f"{number:032x}", "sightloom": {"a": 1}} if with_uid else {})}
        png = noise(number, width, height, "PNG")
        samples.append((f"{number}", {"png": png, "txt": words.encode(), "json": json.dumps(own).encode()}))
    (folder / "a.tar").write_bytes(tar_bytes(samples))
    packed(folder / "a.tar", folder / "out")
    packed(folder / "a.tar", folder / "small", image={"max_side": 16, "format": "webp", "quality": 50})


def test_a_sample_over_the_cap_is_named_before_anything_is_written(tmp_path: Path, make_tar: Any) -> None:
    samples = [("small", {"jpg": noise(1, 20, 20), "txt": b"a"}), ("LARGE", {"jpg": noise(2, 300, 300), "txt": b"b"})]
    with pytest.raises(UserMistake, match=r"sample 'LARGE' of '.*a\.tar' needs up to 0\.\d+ MB, pack\.max_mb is 0\.06"):
        packed(make_tar(tmp_path / "a.tar", samples), tmp_path / "out", max_mb=0.06)
    assert not (tmp_path / "out").exists()


def test_reencoding_shrinks_turns_upright_and_keeps_the_source_hash(tmp_path: Path, make_tar: Any) -> None:
    turned = noise(1, 96, 64, quality=95, orientation=6)
    samples = [("turned", {"jpg": turned, "txt": b"a"}), ("small", {"png": noise(2, 40, 30, "PNG"), "txt": b"b"})]
    path = make_tar(tmp_path / "a.tar", samples)
    ((built, shard, members),) = packed(path, tmp_path / "out", image={"max_side": 48}).values()
    for row, sample in zip(shard.to_pylist(), members, strict=True):
        image, own = sample["jpg"], json.loads(sample["json"])["sightloom"]
        decoded = Image.open(io.BytesIO(image))
        assert (decoded.width, decoded.height) == (row["width"], row["height"]) == (own["width"], own["height"])
        assert row["sha256"] == hashlib.sha256(image).hexdigest() and row["image_ext"] == "jpg"
        assert not decoded.getexif() and "icc_profile" not in decoded.info
        if row["source_key"] == "turned":
            assert (row["width"], row["height"]) == (32, 48)  # upright: the stored 96 x 64 stands on its side
            assert own["source_sha256"] == hashlib.sha256(turned).hexdigest()
            upright = decode(turned, DecodeLimits()).image.resize((32, 48), Image.Resampling.BICUBIC)
            difference = np.asarray(decoded, np.int16) - np.asarray(upright, np.int16)
            assert np.abs(difference).mean() < 12  # noise at quality 90; another orientation differs by about 80
        else:
            assert (row["width"], row["height"]) == (40, 30)  # never larger
    assert built["images"] == {"jpg": 2}


def test_what_would_not_get_smaller_keeps_its_own_bytes(tmp_path: Path, scene: Any, make_tar: Any) -> None:
    blocks, grain = scene(1), noise(1, 40, 40, quality=30)
    samples = [("blocks", {"png": blocks, "txt": b"a"}), ("grain", {"jpg": grain, "txt": b"b"})]
    path = make_tar(tmp_path / "a.tar", samples)
    ((built, shard, members),) = packed(path, tmp_path / "out", image={"max_side": 512, "quality": 95}).values()
    by_key = {row["source_key"]: sample for row, sample in zip(shard.to_pylist(), members, strict=True)}
    assert (by_key["blocks"]["png"], by_key["grain"]["jpg"]) == (blocks, grain)
    assert "source_sha256" not in json.loads(by_key["blocks"]["json"])["sightloom"]
    assert built["images"] == {"jpg": 1, "png": 1}


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_every_format_is_written_and_twice_the_same(form: Any) -> None:
    source = noise(3, 200, 100, "PNG")
    encoding = Encoding(max_side=64, format=form)
    one, two = (encode(source, encoding, DecodeLimits()) for _ in range(2))
    assert one == two and one is not None and (one.width, one.height) == (64, 32)
    assert decode(one.data, DecodeLimits()).format == form.upper()


def shard_of(name: str, **kinds: int) -> Shard:
    return Shard(name=name, samples=sum(kinds.values()), bytes=1, sha256="", index_sha256="", table="", table_sha256="",
                 domains={}, kinds=kinds)  # fmt: skip


def test_other_readers_find_what_they_need_beside_the_shards() -> None:
    import yaml

    files = foreign_files([shard_of("a-000000.tar", pair=3), shard_of("a-000001.tar", pair=2)], {"jpg": 4, "png": 1})
    assert json.loads(files["sizes.json"]) == {"a-000000.tar": 3, "a-000001.tar": 2}
    info = json.loads(files[".nv-meta/.info.json"])
    assert info == {"energon_version": "7.4.1", "shard_counts": {"a-000000.tar": 3, "a-000001.tar": 2}}
    split = yaml.safe_load(files[".nv-meta/split.yaml"])
    assert split["split_parts"] == {"train": ["a-000000.tar", "a-000001.tar"], "val": [], "test": []}
    energon = yaml.safe_load(files[".nv-meta/dataset.yaml"])
    assert energon["field_map"] == {"image": "jpg,png", "caption": "txt"}
    mixed = yaml.safe_load(foreign_files([shard_of("a", pair=1, preference=2)], {"webp": 3})[".nv-meta/dataset.yaml"])
    assert mixed["field_map"] == {"image": "webp", "caption": "txt,json"}
    bare = yaml.safe_load(foreign_files([shard_of("a", conversation=2)], {"jpg": 1, "": 1})[".nv-meta/dataset.yaml"])
    assert bare == {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}

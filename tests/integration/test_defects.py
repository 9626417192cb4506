"""One corpus with every planted defect: each has its own reason, none ends the run, nothing is written beside OUT."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightloom.config import validate
from sightloom.data.curation import curate
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import Sample, SampleReader, read_table
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

from ..raw_pairs import bomb_bytes, scene_bytes

pytestmark = pytest.mark.usefixtures("ray_session")

LONG_KEY = "k" * 200
LONG_TEXT = "a very long caption about a cat " * 313  # 10,016 characters
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
Reasons = dict[str, list[str | None]]
Members = Iterable[tuple[tarfile.TarInfo | str, bytes]]


class Touches:
    """A pickle that writes a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def scene(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.open(io.BytesIO(scene_bytes(number, size)))


def put_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def pair(key: str, image: bytes, text: bytes | str, extension: str = "png") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", image), (f"{key}.txt", text if isinstance(text, bytes) else text.encode())]


def plant(raw: Path) -> Reasons:
    """Write the corpus; return what must become of each key's records: a reason, or None where they stay."""
    frames = [scene(60 + number) for number in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures: list[tuple[str, bytes, str, str | None]] = [
        ("plain", scene_bytes(1), "png", None),
        ("pixel", scene_bytes(2, (1, 1)), "png", "small"),
        ("strip", scene_bytes(3, (400, 20)), "png", "narrow"),
        ("cut", encoded(scene(4, (300, 200)), "JPEG")[:2000], "jpg", "truncated_image"),
        ("cmyk", encoded(scene(5).convert("CMYK"), "JPEG"), "jpg", None),
        ("deep", encoded(scene(6).convert("L").convert("I;16"), "PNG"), "png", None),
        ("moving", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "gif", None),
        ("turned", encoded(scene(7), "JPEG", exif=exif), "jpg", None),
        ("bomb", bomb_bytes(), "png", "too_many_pixels"),
        ("letter", b"this is a text and no picture", "jpg", "unsupported_image"),
    ]
    captions: list[tuple[str, bytes | str, str | None]] = [
        ("empty", " \n", "empty_text"),
        ("nul", "a cat\0 and a dog", "invalid_text"),
        ("latin", "un ch\xe2teau".encode("latin-1"), "invalid_text"),
        ("emoji", "a cat \U0001f408 and a family \U0001f468\u200d\U0001f469\u200d\U0001f467", None),
        ("rtl", "\u05d7\u05ea\u05d5\u05dc \u202eon a mat", None),
        ("long", LONG_TEXT, None),
        ("hostile", HOSTILE, None),
        (LONG_KEY, "a key of two hundred characters", None),
    ]
    expected: Reasons = {}
    members: list[tuple[tarfile.TarInfo | str, bytes]] = []
    for key, image, extension, reason in pictures:
        members += pair(key, image, f"a caption of {key}", extension)
        expected[key] = [reason]
    for number, (key, text, reason) in enumerate(captions):
        members += pair(key, scene_bytes(100 + number), text)
        expected[key] = [reason]
    members += pair("twice", scene_bytes(20), "the first") + pair("twice", scene_bytes(21), "the second")
    members += pair("v1.5", scene_bytes(22), "a key with a dot")
    members += pair("two.1", scene_bytes(23), "one of two") + pair("two.2", scene_bytes(24), "two of two")
    several: Reasons = {"twice": [None, None], "v1": [None], "two": ["multi_image"]}
    put_tar(raw / "0-pairs.tar", members)

    opened = pickle.dumps(Touches(raw.parent / "opened"))
    hostile: Members = [
        *pair("../up", scene_bytes(30), "climbs out"),
        *pair("/absolute", scene_bytes(31), "from the root"),
        (special("link.png", tarfile.SYMTYPE), b""), ("link.txt", b"a symlink"),
        (special("hard.png", tarfile.LNKTYPE), b""), ("hard.txt", b"a hard link"),
        (special("device.png", tarfile.CHRTYPE), b""), ("device.txt", b"a device"),
        *pair("pickled", scene_bytes(32), "beside a pickle"), ("pickled.pkl", opened),
        ("code.pickle", opened),
        ("scattered.png", scene_bytes(33)), *pair("between", scene_bytes(34), "in between"),
        ("scattered.txt", b"its picture came before"),
    ]  # fmt: skip
    unsafe: Reasons = {key: ["unsafe_member"] for key in ("../up", "/absolute", "link", "hard", "device")}
    odd: Reasons = {"pickled": [None], "between": [None], "code": ["missing_image"],
                    "scattered": ["missing_text", "split_key"]}  # fmt: skip
    put_tar(raw / "1-hostile.tar", hostile)

    put_tar(raw / "2-cut.tar", [m for n in range(3) for m in pair(f"whole{n}", scene_bytes(40 + n), f"whole {n}")])
    data = (raw / "2-cut.tar").read_bytes()
    (raw / "2-cut.tar").write_bytes(data[: data.rindex(b"whole2.png") + 700])
    (raw / "3-nothing.tar").write_bytes(b"")
    put_tar(raw / "4-trailer-only.tar", [])
    put_tar(raw / "5-imageless.tar", [("words.txt", b"no picture"), ("words.json", b"{}"), ("meta.json", b"[1]")])
    broken: Reasons = {"whole0": [None], "whole1": [None], "whole2": ["tar_truncated"], "": ["tar_truncated"],
                       "words": ["missing_image"], "meta": ["missing_image"]}  # fmt: skip
    return expected | several | unsafe | odd | broken


def others(root: Path, out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and out not in path.parents}


def test_every_planted_defect_has_its_own_reason_and_none_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = tmp_path / "deep" / "raw", tmp_path / "out"
    raw.mkdir(parents=True)
    monkeypatch.chdir(raw)
    expected = plant(raw)
    before = others(tmp_path, out)
    rules = {"small": "min(width, height) >= 8", "narrow": "aspect <= 3"}
    source = [{"kind": "webdataset", "uri": f"{raw}/*.tar"}]
    recipe = {"name": "p", "out": str(out), "source": source, "select": {"rules": rules}, "score": {"chunk_rows": 32}}
    result = curate(validate(Recipe, recipe, "test"), NullProgress())

    assert others(tmp_path, out) == before and not Path("/absolute.png").exists()
    (base,) = out.glob("scores/base-*/segments/*.parquet")
    (decided,) = out.glob("select/*/decision.parquet/*.parquet")
    rows = pq.read_table(base, columns=["source_key", "frames", "width", "height", "text"]).to_pylist()
    found: dict[str, list[str | None]] = {}
    for row, reason in zip(rows, pq.read_table(decided).column("reason").to_pylist(), strict=True):
        found.setdefault(row["source_key"], []).append(reason)
    assert found == expected

    reasons = [reason for each in expected.values() for reason in each]
    assert result.rows_in == len(reasons) and result.failed == 0 and result.kept == reasons.count(None)
    assert result.dropped == {reason: reasons.count(reason) for reason in sorted({*reasons} - {None}, key=str)}
    assert result.rows_in == result.kept + sum(result.dropped.values()) + result.failed
    of = {row["source_key"]: row for row in rows}
    assert of["moving"]["frames"] == 3 and (of["turned"]["width"], of["turned"]["height"]) == (40, 48)
    assert of["long"]["text"] == LONG_TEXT[:1000]

    page = Path(result.report)
    facts = json.loads((page.parent / "report.json").read_text())
    assert facts["dropped"] == result.dropped and facts["rows_in"] == result.rows_in
    html = page.read_text()
    assert all(f"<td>{reason}<td" in html for reason in result.dropped)
    assert HOSTILE not in html and "&lt;script&gt;alert(1)" in html

    manifest = read_manifest(result.manifest)
    assert verify(manifest, True, NullProgress()).problems == ()
    reader = SampleReader(manifest)
    kept: dict[str, list[Sample]] = {}
    for row in read_table(manifest).to_pylist():
        kept.setdefault(row["source_key"], []).append(reader.read(row["shard"], row["offset"], row["size"]))
    reader.close()
    assert {key: len(samples) for key, samples in kept.items()} == {
        key: each.count(None) for key, each in expected.items() if None in each
    }
    assert kept["long"][0].text == LONG_TEXT and kept["hostile"][0].text == HOSTILE
    assert kept["rtl"][0].text == "\u05d7\u05ea\u05d5\u05dc \u202eon a mat"
    assert {sample.text for sample in kept["twice"]} == {"the first", "the second"}

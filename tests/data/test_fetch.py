import asyncio
import email.utils
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image

from sightloom.config import validate
from sightloom.data.fetch import NotFetched, inputs, stage
from sightloom.data.fetch.client import opted_out, retry_after
from sightloom.data.fetch.lists import url_lists
from sightloom.data.recipe import Recipe
from sightloom.data.sources.config import FetchConfig, UrlSource
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress
from sightloom.storage import read_json

from .fetching import LOOPBACK, fetch, serve


def test_every_url_has_a_status_and_only_pictures_are_staged(tmp_path: Any, scene: Any) -> None:
    tries: dict[str, int] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        path = request.path
        tries[path] = tries.get(path, 0) + 1
        if path == "/robots.txt":
            return web.Response(text="User-agent: *\nDisallow: /private/")
        if path == "/moved":
            raise web.HTTPFound("/ok.png")
        if path == "/inside":
            raise web.HTTPFound("http://169.254.169.254/latest/meta-data")
        if path == "/loop":
            raise web.HTTPFound("/loop")
        if path == "/flaky" and tries[path] == 1:
            return web.Response(status=503)
        if path == "/gone":
            return web.Response(status=404)
        if path == "/page":
            return web.Response(text="<html>")
        if path == "/big":
            return web.Response(body=scene(1) + bytes(200_000))
        if path == "/opt-out":
            return web.Response(body=scene(1), headers={"X-Robots-Tag": "otherbot: all, noai"})
        if path == "/slow":
            await asyncio.sleep(4)
        return web.Response(body=scene(1))

    base, stop = serve(handler)
    paths = ["ok.png", "moved", "inside", "loop", "flaky", "gone", "page", "big", "opt-out", "private/a.png", "slow"]
    urls = [f"{base}/{path}" for path in paths]
    others = ["ftp://example.org/a.png", "http://user@example.org/a.png", None, "file:///etc/passwd"]
    try:
        status = fetch([*urls, *others], str(tmp_path), allow_networks=LOOPBACK, max_mb=0.1)
    finally:
        stop()
    assert dict(zip(paths, status, strict=False)) == {
        "ok.png": "ok", "moved": "ok", "inside": "fetch_blocked_address", "loop": "fetch_redirects", "flaky": "ok",
        "gone": "fetch_http_404", "page": "fetch_not_image", "big": "fetch_too_large", "opt-out": "fetch_opt_out",
        "private/a.png": "fetch_robots", "slow": "fetch_timeout",
    }  # fmt: skip
    assert set(status[len(paths) :]) == {"fetch_scheme"}
    assert tries["/robots.txt"] == 1 and tries["/flaky"] == 2 and tries["/gone"] == 1
    commit = read_json(f"{tmp_path}/commit/c.json")
    assert commit["status"]["ok"] == 3 and sum(commit["status"].values()) == len(urls) + 4


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254"])
def test_private_addresses_are_not_reached_however_they_are_written(tmp_path: Any, host: str) -> None:
    assert fetch([f"http://{host}:9/a.png"], str(tmp_path)) == ["fetch_blocked_address"]


def here(function: Callable[[Any], Any], works: Iterable[Any], cpus: float) -> Iterator[tuple[Any, Any]]:
    """Tasks, run in this process."""
    for work in works:
        yield work, function(work)


def listed(folder: Path, urls: list[dict[str, Any]], **fetch: Any) -> Recipe:
    (folder / "urls.jsonl").write_text("\n".join(map(json.dumps, urls)))
    settings = {"contact": "tests@example.org", "allow_networks": LOOPBACK, "total_s": 5, "tries": 1, **fetch}
    fields = {"url": "url", "text": "text"} | ({"sha256": "sha"} if any("sha" in url for url in urls) else {})
    source = {"kind": "urls", "uri": str(folder / "urls.jsonl"), "fields": fields, "fetch": settings}
    return validate(Recipe, {"name": "p", "out": str(folder / "out"), "source": [source]}, "test")


def staged(recipe: Recipe) -> dict[str, bytes]:
    """Every staged picture by its member's URL."""
    found = {}
    for file in inputs(recipe).files:
        with tarfile.open(file.uri) as tar:
            data = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
        for name in data:
            if name.endswith(".json"):
                image = next(n for n in data if n.startswith(name[:-5]) and not n.endswith((".json", ".txt")))
                found[json.loads(data[name])["url"]] = data[image]
    return found


def test_failed_urls_are_fetched_again_as_a_next_generation_and_the_newest_status_counts(
    tmp_path: Path, scene: Any
) -> None:
    healthy: set[str] = {"/0.png", "/3.png"}
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/robots.txt":
            return web.Response(status=404)
        if request.path == "/gone.png":
            return web.Response(status=404)
        return web.Response(body=scene(1)) if request.path in healthy else web.Response(status=503)

    base, stop = serve(handler)
    names = ["0.png", "1.png", "gone.png", "3.png", "4.png"]
    recipe = listed(tmp_path, [{"url": f"{base}/{name}", "text": name} for name in names], chunk_rows=2)
    try:
        with pytest.raises(NotFetched, match="not wholly fetched"):
            inputs(recipe)
        stage(recipe, None, here, NullProgress())
        assert inputs(recipe).not_fetched == {"fetch_http_404": 1, "fetch_http_503": 2}
        assert asked.count("/robots.txt") == 1  # once a host and day, for all three chunks
        first = {file.file_id for file in inputs(recipe).files}
        before = len(asked)
        stage(recipe, None, here, NullProgress())
        assert len(asked) == before  # what is committed is not asked again
        healthy.add("/1.png")
        stage(recipe, None, here, NullProgress(), ("http_503",))
        assert asked[before:].count("/gone.png") == 0 and sorted(asked[before:]) == ["/1.png", "/4.png"]
        assert inputs(recipe).not_fetched == {"fetch_http_404": 1, "fetch_http_503": 1}
        assert first < {file.file_id for file in inputs(recipe).files}  # what was staged stays as it was
        healthy.update({"/4.png", "/gone.png"})
        stage(recipe, None, here, NullProgress(), ("*",))
        assert inputs(recipe).not_fetched == {"fetch_http_404": 1}
    finally:
        stop()
    assert set(staged(recipe)) == {f"{base}/{name}" for name in names if name != "gone.png"}


def test_hashes_are_compared_and_large_pictures_made_smaller(tmp_path: Path, scene: Any) -> None:
    large, small = scene(1, (300, 200), "JPEG"), scene(2, (40, 60))

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body={"/large": large, "/small": small}.get(request.path, b""), status=200)

    base, stop = serve(handler)
    right, wrong = hashlib.sha256(large).hexdigest(), "0" * 64
    rows = [
        {"url": f"{base}/large", "text": "a", "sha": right.upper()},
        {"url": f"{base}/small", "text": "b", "sha": None},
        {"url": f"{base}/small", "text": "c", "sha": wrong},
    ]
    recipe = listed(tmp_path, rows, resize={"side": 100}, robots=False)
    try:
        stage(recipe, None, here, NullProgress())
    finally:
        stop()
    assert inputs(recipe).not_fetched == {"fetch_hash_mismatch": 1}
    found = staged(recipe)
    assert found[f"{base}/small"] == small  # never enlarged, its own bytes
    assert Image.open(io.BytesIO(found[f"{base}/large"])).size == (150, 100)


def test_a_host_is_asked_by_few_at_once(tmp_path: Path, scene: Any) -> None:
    now, most = 0, 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return web.Response(body=scene(1))

    base, stop = serve(handler)
    try:
        status = fetch([f"{base}/{n}.png" for n in range(20)], str(tmp_path), allow_networks=LOOPBACK, per_host=3)
    finally:
        stop()
    assert status == ["ok"] * 20 and most == 3


def test_a_host_that_says_when_to_come_back_is_obeyed(tmp_path: Path, scene: Any) -> None:
    times: list[float] = []

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/robots.txt":
            return web.Response(text="")
        times.append(asyncio.get_running_loop().time())
        return web.Response(status=429, headers={"Retry-After": "1"}) if len(times) < 2 else web.Response(body=scene(1))

    base, stop = serve(handler)
    try:
        assert fetch([f"{base}/a.png"], str(tmp_path), allow_networks=LOOPBACK) == ["ok"]
    finally:
        stop()
    assert times[1] - times[0] >= 1.0
    assert retry_after("7", 0.0) == 7.0 and retry_after("4000", 0.0) == 120.0 and retry_after("soon", 0.0) == 0.0
    assert retry_after(email.utils.formatdate(1030, usegmt=True), 1000.0) == 30.0
    assert retry_after(email.utils.formatdate(900, usegmt=True), 1000.0) == 0.0


@pytest.mark.parametrize(
    ("tags", "out"),
    [(["noai"], True), (["all"], False), (["max-snippet:5", "NoImageIndex"], True), (["bot: noml"], True), ([], False)],
)
def test_opt_outs_are_read_from_any_x_robots_tag(tags: list[str], out: bool) -> None:
    assert opted_out(tags) is out


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_lists_of_every_kind_are_cut_into_the_same_chunks(tmp_path: Path, suffix: str) -> None:
    rows = [{"link": f"http://a/{n}", "words": f"cat, {n}", "stars": str(n)} for n in range(5)]
    path = tmp_path / f"list.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join(f'"{value}"' for value in row.values()) for row in [dict.fromkeys(rows[0], ""), *rows]]
        lines[0] = mark.join(rows[0])
        path.write_text("\n".join(lines))
    source = UrlSource(kind="urls", uri=str(path), fields={"url": "link", "text": "words"},
                       fetch=FetchConfig(contact="abc", chunk_rows=2))  # fmt: skip
    chunks = list(url_lists(source)[0].chunks())
    assert [(index, last, len(found)) for index, last, found in chunks] == [(0, False, 2), (1, False, 2), (2, True, 1)]
    assert chunks[2][2] == [{"row": 0, "url": "http://a/4", "text": "cat, 4", "sha256": None, "rest": {"stars": "4"}}]
    wrong = source.model_copy(update={"fields": {"url": "href", "text": "words"}})
    with pytest.raises(UserMistake, match="no column 'href'"):
        list(url_lists(wrong)[0].chunks())


def test_a_list_that_is_none_is_a_mistake_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"url": "http://a", "text": "x"}\nnot json\n')
    source = UrlSource(kind="urls", uri=str(tmp_path / "a.jsonl"), fetch=FetchConfig(contact="abc"))
    with pytest.raises(UserMistake, match="line 2 is not JSON"):
        list(url_lists(source)[0].chunks())

import os
import time
from pathlib import Path

import pyarrow as pa

from sightloom import storage
from sightloom.data.garbage import find_garbage
from sightloom.data.ledger import Group, commit, committed
from sightloom.data.segments import next_compactions, publish, write_segment


def test_what_no_commit_names_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    group = Group.make(str(tmp_path), "base", {})
    commit(group, "0123456789abcdef-00000", True, pa.table({"a": [1]}), {"status": {"ok": 1}, "src": {}})
    (work,) = next_compactions([group], [committed(group)], ["0123456789abcdef"], 1)
    publish(group, write_segment(work))
    lost = [
        f"{group.folder}/data/0123456789abcdef-00000-deadbeef.parquet",
        f"{group.folder}/segments/00001-deadbeef.parquet",
        str(tmp_path / "fetch/0123456789ab/gen-0/tar/0123456789abcdef-00000-deadbeef.tar"),
        str(tmp_path / "shards/x/x-000000.tar"),
        str(tmp_path / "shards/x/.x-000001.tar.0123456789ab"),
        str(tmp_path / ".sightloom-probe-0123456789ab"),
        str(tmp_path / "dedup/0123456789ab/buckets-0123abcd/uid-00000.arrow"),
    ]
    for uri in lost:
        storage.write(uri, b"x")
    kept = [str(tmp_path / "plan/f/plan.parquet/part-00000.parquet"), str(tmp_path / "shards/y/y-000000.tar")]
    for uri in kept:
        storage.write(uri, b"x")
    storage.write(
        str(tmp_path / "plan/f/commit/y-000000.json"),
        b'{"shard": {"name": "y-000000.tar", "table": "y-000000.parquet"}, "images": {}}',
    )
    assert find_garbage(str(tmp_path)) == []  # a run may be under way
    day_ago = time.time() - 90_000
    for path in tmp_path.rglob("*"):
        os.utime(path, (day_ago, day_ago))
    assert sorted(info.uri for info in find_garbage(str(tmp_path))) == sorted(lost)

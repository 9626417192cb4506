from pathlib import Path
from typing import Any

import pytest

from sightloom.data.measure import measure
from sightloom.data.probe import Probe
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import to_table
from sightloom.data.sources.records import RawRecord

INJECTED = Path(__file__).parents[1] / "integration" / "injected"


def test_a_picture_that_kills_its_decoder_is_named_and_the_next_one_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, scene: Any
) -> None:
    paths = [str(INJECTED), str(Path(__file__).parents[2] / "platform")]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    pictures = [scene(1), scene(2) + b"KILLS-ITS-DECODER", scene(3)[:200], scene(4)]
    records = to_table([RawRecord(n, str(n), image=image, text="a cat") for n, image in enumerate(pictures)])
    with Probe(DecodeLimits(), ()) as probe:
        table = measure(records, "a.tar", DecodeLimits(), {}, (), frozenset(), probe).table
    assert table.column("status").to_pylist() == ["ok", "internal_error", "truncated_image", "ok"]
    assert "exit code -9" in table.column("detail").to_pylist()[1]

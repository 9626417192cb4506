"""What a node says of itself while work is done on it."""

import threading
import time
from typing import Any

from sightloom.node_metrics import NodeMetrics


def test_a_node_is_read_at_once_and_again_under_mlflows_names_until_the_work_ends() -> None:
    said: list[dict[str, Any]] = []
    twice = threading.Event()

    def say(event: dict[str, Any]) -> None:
        said.append(event)
        if len(said) == 2:
            twice.set()

    with NodeMetrics("node_3", say, every_s=0.05):
        assert twice.wait(10)
    count = len(said)
    time.sleep(0.15)
    assert len(said) == count
    first = said[0]["metrics"]
    assert {"system/node_3/cpu_utilization_percentage", "system/node_3/disk_usage_percentage"} <= set(first)
    assert first["system/node_3/system_memory_usage_megabytes"] > 0
    assert {event["kind"] for event in said} == {"system"} and abs(said[0]["step"] - time.time()) < 60

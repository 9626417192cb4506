"""What a node is busy with: MLflow's monitors of CPU, memory, disk, network and GPU, read where the work is done.

Workers do not talk to MLflow; they hand the numbers on under its names: `system/<node>/cpu_utilization_percentage`.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

EVERY_S: Final = 10.0  # MLflow's own interval


class NodeMetrics:
    """Reads a node's numbers from a thread, at once and then every few seconds, until it is closed.

    Args:
        node: names the node, e.g. `node_0`.
        say: takes `{kind: "system", step, metrics}`; step is the time in whole seconds, which never repeats.
    """

    def __init__(self, node: str, say: Callable[[dict[str, Any]], None], every_s: float = EVERY_S) -> None:
        self._node, self._say, self._every_s = node, say, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-metrics", daemon=True)

    def __enter__(self) -> "NodeMetrics":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        monitors = _monitors()
        while True:
            metrics: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                metrics |= {f"system/{self._node}/{key}": value for key, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._say({"kind": "system", "step": int(time.time()), "metrics": metrics})
            if self._ended.wait(self._every_s):
                return


def _monitors() -> list[BaseMetricsMonitor]:
    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:  # noqa: BLE001  MLflow's monitor raises whatever its driver's library does where there is no GPU
        return monitors
    return monitors

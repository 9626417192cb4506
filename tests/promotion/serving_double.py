"""Serve's document without a cluster, at the edge of the network: what is PUT runs at the next look."""

from collections.abc import Mapping
from typing import Any

from sightloom.promotion.live import Live, read_live


class ServeDouble:
    """Apps come up at once, but for those in `down`; every PUT is kept."""

    def __init__(self) -> None:
        self.down: dict[str, str] = {}
        self.documents: list[Mapping[str, Any]] = []

    def put(self, document: Mapping[str, Any]) -> None:
        self.documents.append(document)

    def read(self) -> Live:
        applications = self.documents[-1]["applications"] if self.documents else []
        return read_live({"applications": {app["name"]: self._details(app) for app in applications}})

    def _details(self, app: Mapping[str, Any]) -> dict[str, Any]:
        status = self.down.get(app["name"], "RUNNING")
        replicas = [{"state": "RUNNING"}] if status == "RUNNING" else []
        message = "" if status == "RUNNING" else "file 'x' is not the one that was registered"
        deployments = {"engine": {"replicas": replicas, "message": message}}
        return {"status": status, "message": "", "deployments": deployments, "deployed_app_config": dict(app)}

"""What runs now, as Serve's REST interface tells it (`GET /api/serve/applications/`): pure reading."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ray.serve.schema import ServeApplicationSchema

from sightloom.serving.routes import Routes

ROUTER: Final = "router"
_UP: Final = ("RUNNING", "UPDATING")
_FAILED: Final = ("DEPLOY_FAILED",)


@dataclass(frozen=True, slots=True)
class App:
    """A Serve application. `up`: replicas that take requests; `config`: what it was deployed by."""

    name: str
    status: str
    message: str
    up: int
    config: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """Whether it will not come up by waiting."""
        return self.status in _FAILED and self.up == 0


@dataclass(frozen=True, slots=True)
class Live:
    """All applications, and the routes that the router has."""

    apps: Mapping[str, App] = field(default_factory=dict)
    routes: Routes = field(default_factory=lambda: Routes())

    def up(self, app: str) -> bool:
        """Whether an app has a replica that takes requests."""
        return app in self.apps and self.apps[app].up > 0

    @property
    def applications(self) -> list[dict[str, Any]]:
        """The declared applications, in a normal form, by name."""
        return [normal(self.apps[name].config) for name in sorted(self.apps) if self.apps[name].config]


def read_live(details: Mapping[str, Any]) -> Live:
    """Read the answer of `GET /api/serve/applications/`."""
    apps = {}
    for name, about in details.get("applications", {}).items():
        replicas = [
            replica for deployment in about.get("deployments", {}).values() for replica in deployment["replicas"]
        ]
        up = sum(replica["state"] in _UP for replica in replicas)
        message = " ".join(
            part
            for part in (about.get("message", ""), *(d.get("message", "") for d in about["deployments"].values()))
            if part
        )
        if about["status"] != "DELETING":
            apps[name] = App(name, about["status"], message, up, about.get("deployed_app_config") or {})
    return Live(apps, _routes(apps))


def normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """An application's configuration with Serve's defaults filled in, so that two can be compared."""
    dumped: dict[str, Any] = ServeApplicationSchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    return dumped


def _routes(apps: Mapping[str, App]) -> Routes:
    router = apps.get(ROUTER)
    if router is None:
        return Routes()
    for deployment in router.config.get("deployments", ()):
        if deployment.get("name") == ROUTER and deployment.get("user_config"):
            return Routes.model_validate(deployment["user_config"])
    return Routes()

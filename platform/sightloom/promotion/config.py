"""The release manager's configuration."""

from typing import Any, Literal

from pydantic import Field

from sightloom.config import Frozen
from sightloom.serving.clip import ClipSettings
from sightloom.serving.config import EndpointConfig
from sightloom.serving.engines.settings import EngineSettings, TransformersSettings
from sightloom.serving.ports import address_of


class HttpConfig(Frozen):
    """Where the endpoint listens. Beyond loopback `endpoint.keys` must name a key file."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def address(self) -> str:
        """Where a client reaches it; empty where it listens on every address of its node."""
        if self.host in ("", "0.0.0.0", "::"):
            return ""
        return address_of(self.host, self.port)


class RayServiceWriter(Frozen):
    """The RayService that the documents of a cluster of KubeRay's are written into.

    `account`: folder with `token` and `ca.crt` of a service account that may patch it.
    """

    namespace: str
    name: str
    api: str = Field(default="https://kubernetes.default.svc", pattern=r"^https://[^/?#]+")
    account: str = "/var/run/secrets/kubernetes.io/serviceaccount"


class ManagerConfig(Frozen):
    """What the release manager needs to know; it travels into its actor as plain data.

    Attributes:
        store: MLflow's address as the cluster's nodes see it (`http://…`, or `sqlite:////absolute/path` on one node).
        dashboard: address of Ray's dashboard, whose REST interface takes Serve's whole document.
        token_file: file with Ray's token, where the cluster asks for one (`RAY_AUTH_MODE=token`).
        writer: what takes Serve's whole document instead, where KubeRay keeps Serve.
        cache: folder on every node for downloaded versions.
        clips: open_clip models for embeddings beside the versions, by name; a local one lies on every node.
        runtime_env: of all applications.
        extra_apps: further Serve applications, kept as they are: a PUT removes what it does not list.
        rollback_ttl_s: how long the previous champion stays warm.
    """

    store: str
    dashboard: str = "http://127.0.0.1:8265"
    token_file: str | None = None
    writer: RayServiceWriter | None = None
    cache: str = "~/.cache/sightloom/models"
    proxies: Literal["HeadOnly", "EveryNode"] = "HeadOnly"
    http: HttpConfig = HttpConfig()
    endpoint: EndpointConfig = EndpointConfig()
    engine: EngineSettings = TransformersSettings()
    replicas: int = Field(default=1, ge=1, description="of every version's app")
    cpus: float = Field(default=0.5, ge=0, description="of every replica, which waits most of the time")
    gpus: float = Field(default=0, ge=0)
    routers: int = Field(default=1, ge=1)
    clips: dict[str, ClipSettings] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    extra_apps: tuple[dict[str, Any], ...] = ()
    rollback_ttl_s: float = Field(default=86_400, ge=0)
    idle_s: float = Field(default=10, gt=0, description="between ticks")
    busy_s: float = Field(default=2, gt=0, description="between ticks while something moves")

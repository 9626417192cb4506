"""What an endpoint is made of, apart from models and addresses."""

from pydantic import Field

from sightloom.config import Frozen
from sightloom.serving.media import MediaLimits


class EndpointConfig(Frozen):
    """The endpoint, apart from models and addresses.

    `keys`: the key file; None only where it listens on loopback. `log_requests`: a JSON line a request on stderr.
    `traces`: address of an OTLP collector.
    """

    keys: str | None = None
    media: MediaLimits = MediaLimits()
    body_bytes: int = 24 * 2**20
    max_in_flight: int = 512
    deadline_s: float = 300.0
    keep_alive_s: float = 15.0
    log_requests: bool = False
    traces: str | None = Field(default=None, pattern=r"^https?://[^/?#]+")

"""Which versions take which requests: the router's `user_config`, and the choice for one request (pure)."""

import hashlib
from typing import Final, Literal

from pydantic import Field

from sightloom.config import Frozen

BASIS_POINTS: Final = 10_000
RouteKind = Literal["champion", "challenger", "pin", "fallback", "shadow"]


class Live(Frozen):
    """A version that takes requests: its Serve app and its share in basis points."""

    version: str
    app: str
    bp: int = BASIS_POINTS


class Shadow(Frozen):
    """A version that is asked again what the champion has answered; nobody sees its answers."""

    version: str
    app: str
    share: float = Field(gt=0, le=1)


class ModelRoutes(Frozen):
    """One model's versions; the first of `live` is the champion, a second the challenger.

    `pins`: version to app, for requests that name one. `salt`: of the hash that chooses a challenger's subjects.
    """

    live: tuple[Live, ...] = ()
    shadow: tuple[Shadow, ...] = ()
    pins: dict[str, str] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    salt: str = ""

    @property
    def apps(self) -> frozenset[str]:
        """All apps that are spoken of."""
        return frozenset({*(one.app for one in self.live), *(one.app for one in self.shadow), *self.pins.values()})


class Routes(Frozen):
    """What the router serves: the deployment's `user_config`. `generation`: number of the ledger event behind it."""

    generation: int = 0
    models: dict[str, ModelRoutes] = Field(default_factory=dict)

    @property
    def apps(self) -> frozenset[str]:
        """All apps that are spoken of."""
        return frozenset(app for model in self.models.values() for app in model.apps)


def choose(routes: ModelRoutes, subject: str) -> tuple[Live, RouteKind]:
    """The version for a subject; raising the challenger's share only adds subjects to it. `live` must not be empty."""
    champion, *others = routes.live
    if others and place(routes.salt, subject) < others[0].bp:
        return others[0], "challenger"
    return champion, "champion"


def shadow_of(routes: ModelRoutes, subject: str) -> Shadow | None:
    """The version that a subject's requests are shadowed to."""
    for shadow in routes.shadow:
        if place(f"shadow {routes.salt}", subject) < round(shadow.share * BASIS_POINTS):
            return shadow
    return None


def place(salt: str, subject: str) -> int:
    """Where a subject stands among 10,000."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{subject}".encode()).digest()[:8]) % BASIS_POINTS

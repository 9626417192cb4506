"""Ray Serve through the dashboard's REST interface: what runs, and the one PUT that moves all of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from sightloom.errors import SightloomError
from sightloom.promotion.live import Live, read_live

_PATH: Final = "/api/serve/applications/"
_TIMEOUT: Final = httpx.Timeout(60, connect=5)


class Serve(Protocol):
    """What runs, and the way to change it."""

    def read(self) -> Live:
        """What runs now; raises SightloomError where Serve cannot be asked."""
        ...

    def put(self, document: Mapping[str, Any]) -> None:
        """Make Serve run this document and nothing else; raises SightloomError where it is refused."""
        ...


class ServeApi:
    """The dashboard's REST interface.

    Args:
        address: the dashboard's, `http://host:8265`.
        token_file: file with Ray's token, read at every call, so that it may be renewed.
    """

    def __init__(self, address: str, token_file: str | None = None) -> None:
        self._address = address.rstrip("/")
        self._token_file = token_file
        self._client = httpx.Client(timeout=_TIMEOUT, trust_env=False)

    def read(self) -> Live:
        """See `Serve.read`."""
        return read_live(self._call("GET").json())

    def put(self, document: Mapping[str, Any]) -> None:
        """See `Serve.put`."""
        self._call("PUT", dict(document))

    def _call(self, method: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"
        try:
            answer = self._client.request(method, f"{self._address}{_PATH}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise SightloomError(f"Ray's dashboard at {self._address} does not answer: {error}") from error
        if answer.status_code >= 400:
            said = answer.text.strip()[:500]
            raise SightloomError(f"Ray's dashboard at {self._address} refused {method} ({answer.status_code}): {said}")
        return answer

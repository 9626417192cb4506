"""Ray Serve under KubeRay: the document is written into a RayService, and its operator hands it to Serve.

The operator is Serve's one writer there: what is PUT behind its back is lost when it sends its copy again.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from sightloom.errors import SightloomError
from sightloom.promotion.config import ManagerConfig, RayServiceWriter
from sightloom.promotion.document import rayservice_patch
from sightloom.promotion.live import Live
from sightloom.promotion.serve_api import Serve, ServeApi

_TIMEOUT: Final = httpx.Timeout(30, connect=5)


class RayServiceApi:
    """Writes a RayService; what runs is read where Serve itself tells it.

    Args:
        serve: tells what runs.
        where: the RayService, and how the Kubernetes API is reached.
    """

    def __init__(self, serve: Serve, where: RayServiceWriter) -> None:
        self._serve, self._where = serve, where
        group = f"/apis/ray.io/v1/namespaces/{where.namespace}/rayservices/{where.name}"
        self._address = where.api.rstrip("/") + group

    def read(self) -> Live:
        """See `Serve.read`."""
        return self._serve.read()

    def put(self, document: Mapping[str, Any]) -> None:
        """See `Serve.put`; the operator applies it within seconds, and until then the same is written again."""
        account = Path(self._where.account)
        try:
            token = (account / "token").read_text(encoding="utf-8").strip()  # Kubernetes renews it every hour
            trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            raise SightloomError(
                f"the service account in '{account}' cannot be read: {error}",
                "the pods of this Ray cluster need one that may patch the RayService",
            ) from error
        headers = {"authorization": f"Bearer {token}", "content-type": "application/merge-patch+json"}
        try:
            with httpx.Client(verify=trusted, timeout=_TIMEOUT, trust_env=False) as client:
                answer = client.patch(self._address, headers=headers, json=rayservice_patch(document))
        except httpx.HTTPError as error:
            raise SightloomError(f"the Kubernetes API at {self._where.api} does not answer: {error}") from error
        if answer.status_code >= 400:
            raise SightloomError(
                f"the Kubernetes API refused to patch the RayService {self._where.namespace}/{self._where.name} "
                f"({answer.status_code}): {answer.text.strip()[:500]}",
                "401, 403: its role needs the verb patch on rayservices; 404: is it there?",
            )


def serve_of(config: ManagerConfig) -> Serve:
    """What runs under a manager, and the way to change it."""
    rest = ServeApi(config.dashboard, config.token_file)
    return rest if config.writer is None else RayServiceApi(rest, config.writer)

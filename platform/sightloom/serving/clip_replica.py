"""open_clip models under Ray Serve: one app a model, whose replica joins what arrives together."""

from collections.abc import Iterable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from sightloom.serving.clip import About, ClipModel, ClipSettings, Feature, Item, app_name
from sightloom.serving.errors import ApiError

MAX_BATCH = 32
BATCH_WAIT_S = 0.005


class ClipReplica:
    """One model; a fixed cost an item, so a batch is the right use of it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._model = ClipModel(ClipSettings.model_validate(settings))

    async def about(self) -> About:
        """What the model says about itself."""
        return self._model.about

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def embed(self, items: list[Item]) -> list[Feature]:
        """The features of what came together."""
        return self._model.features(items)


Clip = serve.deployment(
    name="clip", num_replicas=1, max_ongoing_requests=512, max_queued_requests=1024, ray_actor_options={"num_cpus": 1}
)(ClipReplica)


class HandleEmbedder:
    """A model in another app, by its handle."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handle: Any = None

    async def about(self) -> About:
        """What the model says about itself."""
        return await self._ask("about")

    async def embed(self, item: Item) -> Feature:
        """The feature of a text or a picture."""
        return await self._ask("embed", item)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        if self._handle is None:
            self._handle = serve.get_app_handle(self._app)
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except BackPressureError as error:
            raise ApiError(429, "engine_overloaded", "the model's queue is full", retry_after_s=1) from error
        except (RayError, DeploymentUnavailableError) as error:
            raise ApiError(503, "not_ready", "the model does not answer", retry_after_s=2) from error


def clip_app(settings: ClipSettings) -> Application:
    """One model's app."""
    return Clip.bind(settings.model_dump(mode="json"))


def handles(names: Iterable[str]) -> dict[str, HandleEmbedder]:
    """An embedder for each model that runs as an app."""
    return {name: HandleEmbedder(app_name(name)) for name in names}

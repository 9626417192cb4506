"""The one app: under Ray Serve with handles behind it, under uvicorn with an engine in the process (serving.md §1)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import sightloom
from sightloom.serving.auth import KeyRing, require
from sightloom.serving.chat import Chat
from sightloom.serving.clip import Embedder
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import Dispatcher, not_found
from sightloom.serving.embed import ClipScoreRequest, ClipScores, EmbeddingList, Embeddings, EmbeddingsRequest
from sightloom.serving.errors import ApiError
from sightloom.serving.gate import Gate, Visit
from sightloom.serving.gauges import Busy
from sightloom.serving.limits import Limits
from sightloom.serving.media import MediaGuard
from sightloom.serving.meters import LocalMeters, Meters
from sightloom.serving.protocol import Body, ChatRequest
from sightloom.serving.replies import ChatCompletion, ErrorBody
from sightloom.serving.seen import write_lines
from sightloom.serving.structure import warm_up
from sightloom.serving.traces import Traces

PLAYGROUND: Final = Path(__file__).parent / "playground"
_BODIES: Final[dict[str, type[Body]]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/clip/score": ClipScoreRequest,
}
_ASSETS: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504)
}


def build_app(
    config: EndpointConfig,
    dispatcher: Dispatcher,
    embedders: Mapping[str, Embedder] | None = None,
    meters: Meters | None = None,
) -> FastAPI:
    """Make the endpoint.

    Args:
        embedders: the open_clip models behind `/v1/embeddings` and `/v1/clip/score`, by name.
        meters: where metrics go; None: kept here and shown at `/metrics`, to keys with the scope admin.

    Raises:
        UserMistake: the key file cannot be read, or traces are asked for and their exporter is not installed.
    """
    guard = MediaGuard(config.media)
    meters = meters or LocalMeters()
    meters.set("build_info", 1, version=sightloom.__version__)
    traces = Traces(config.traces) if config.traces is not None else None
    busy = Busy(meters)
    answering = asyncio.Event()
    chat = Chat(dispatcher, guard, busy, config.body_bytes, config.deadline_s, config.keep_alive_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm_up(answering))
        yield
        warming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await warming
        await guard.close()
        if traces is not None:
            traces.close()

    app = FastAPI(
        title="Sightloom",
        version=sightloom.__version__,
        docs_url=None,  # the documentation pages would load scripts from outside
        redoc_url=None,
        lifespan=lifespan,
    )
    keys, limits = KeyRing(config.keys), Limits(config.max_in_flight)
    if config.log_requests:
        write_lines()
    app.add_middleware(Gate, keys=keys, limits=limits, meters=meters, traces=traces)
    _answer_errors(app)
    _add_chat(app, chat, answering)
    _add_embeddings(app, Embeddings(embedders or {}, guard, config.body_bytes))
    _add_models(app, dispatcher)
    _add_health(app, dispatcher, answering)
    _add_state(app, keys, dispatcher, limits, config)
    if isinstance(meters, LocalMeters):
        _add_metrics(app, keys, dispatcher, meters)
    _add_playground(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _warm_up(answering: asyncio.Event) -> None:
    """Load the compiler of schemas once a model answers: before, it would take the cores that models start on."""
    await answering.wait()
    await asyncio.to_thread(warm_up)


def _add_chat(app: FastAPI, chat: Chat, answering: asyncio.Event) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={
            **_ERRORS,
            200: {"model": ChatCompletion, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        },
        summary="Answer a conversation with pictures",
    )
    async def completions(request: Request) -> Response:
        answering.set()
        return await chat(request)


def _add_embeddings(app: FastAPI, embeddings: Embeddings) -> None:
    @app.post("/v1/embeddings", responses=_ERRORS, summary="Features of texts and pictures, of length 1")
    async def embed(request: Request) -> EmbeddingList:
        return await embeddings.embeddings(request)

    @app.post("/v1/clip/score", responses=_ERRORS, summary="Cosines of pictures and texts")
    async def score(request: Request) -> ClipScores:
        return await embeddings.score(request)


def _add_models(app: FastAPI, dispatcher: Dispatcher) -> None:
    @app.get("/v1/models", responses=_ERRORS, summary="List the models")
    async def models(request: Request) -> dict[str, Any]:
        visit: Visit = request.state.visit
        cards = await dispatcher.cards("pin" in visit.key.scopes)
        return {"object": "list", "data": [card.to_json() for card in cards]}

    @app.get("/v1/models/{model}", responses=_ERRORS, summary="Show one model")
    async def model(model: str, request: Request) -> dict[str, Any]:
        visit: Visit = request.state.visit
        cards = await dispatcher.cards("pin" in visit.key.scopes)
        found = next((card for card in cards if card.id == model), None)
        if found is None:
            raise not_found(model, tuple(card.id for card in cards))
        return found.to_json()


def _add_health(app: FastAPI, dispatcher: Dispatcher, answering: asyncio.Event) -> None:
    @app.get("/healthz", summary="The process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="The champions answer", responses={503: {"description": "not ready"}})
    async def readyz() -> JSONResponse:
        readiness = await dispatcher.readiness()
        if readiness.ready:
            answering.set()
        body = {"ready": readiness.ready, "generation": readiness.generation, "models": readiness.models}
        return JSONResponse(body, status_code=200 if readiness.ready else 503)


def _add_state(app: FastAPI, keys: KeyRing, dispatcher: Dispatcher, limits: Limits, config: EndpointConfig) -> None:
    @app.get("/admin/state", responses=_ERRORS, summary="Routes, engines and limits, for administrators")
    async def state(request: Request) -> dict[str, Any]:
        require(keys.identify(request.headers.get("authorization")), "admin")
        bounds = config.model_dump(mode="json", exclude={"keys"})
        return {**await dispatcher.state(), "limits": {**bounds, **limits.state()}}


def _add_metrics(app: FastAPI, keys: KeyRing, dispatcher: Dispatcher, meters: LocalMeters) -> None:
    @app.get("/metrics", include_in_schema=False)  # for Prometheus, not for clients
    async def metrics(request: Request) -> PlainTextResponse:
        require(keys.identify(request.headers.get("authorization")), "admin")
        dispatcher.tell(meters)
        return PlainTextResponse(meters.text(), media_type=CONTENT_TYPE_LATEST)


def _add_playground(app: FastAPI) -> None:
    pages = {page.name: page for page in PLAYGROUND.iterdir() if page.suffix in _ASSETS}

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return FileResponse(pages["index.html"], media_type="text/html", headers={"cache-control": "no-cache"})

    @app.get("/playground/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404)
        page = pages[name]
        return FileResponse(page, media_type=_ASSETS[page.suffix], headers={"cache-control": "no-cache"})


def _answer_errors(app: FastAPI) -> None:
    """Give every failure the one shape, the framework's own included."""

    def respond(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> JSONResponse:
        request.state.visit.facts.failed(error)
        return respond(error)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: ("not_found", "there is nothing at this address")}
        codes[405] = ("method_not_allowed", f"'{request.method}' is not served at this address")
        code, message = codes.get(error.status_code, ("invalid_value", "the request cannot be served"))
        answer = respond(ApiError(error.status_code, code, message))
        answer.headers.update(dict(error.headers or {}))
        return answer

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> JSONResponse:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
        return respond(ApiError(400, "invalid_value", f"'{where}' is not valid", where or None))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The schema, with the chat request that the handler reads by itself."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        for path, kind in _BODIES.items():
            request = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(request.pop("$defs", {}))
            parts[kind.__name__] = request
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
            schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        parts.pop("HTTPValidationError", None), parts.pop("ValidationError", None)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema

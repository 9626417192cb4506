"""`POST /v1/embeddings` and `/v1/clip/score`: features of texts and pictures by open_clip models (serving.md §2).

Shapes: N items, D features.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, Field
from starlette.requests import Request

from sightloom.serving.chat import read_body
from sightloom.serving.clip import Embedder, Feature, Item
from sightloom.serving.dispatch import not_found
from sightloom.serving.errors import ApiError, invalid
from sightloom.serving.gate import Visit
from sightloom.serving.media import MediaGuard, Reference
from sightloom.serving.protocol import Body, ImagePart, Part, TextPart, parse, read_json

MAX_TEXTS: Final = 256
MAX_IMAGES: Final = 32
MAX_PARTS: Final = 64
DEADLINE_S: Final = 60.0
Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class EmbeddingsRequest(Body):
    """Body of `POST /v1/embeddings`: a text, several, or parts; each becomes one vector of length 1."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Annotated[str, Field(max_length=512)] = ""


class ClipScoreRequest(Body):
    """Body of `POST /v1/clip/score`. `pairwise`: the i-th picture with the i-th text only."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    images: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_IMAGES)]
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    pairwise: bool = False
    user: Annotated[str, Field(max_length=512)] = ""


class EmbeddingUsage(BaseModel):
    """Text tokens; a picture counts none."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The reply of `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ClipScores(BaseModel):
    """The reply of `POST /v1/clip/score`: a row a picture, a column a text; with `pairwise` one column."""

    scores: list[list[float]]
    logit_scale: float
    logit_bias: float | None
    model: str
    usage: EmbeddingUsage


class Embeddings:
    """Answers embedding and score requests."""

    def __init__(self, embedders: Mapping[str, Embedder], guard: MediaGuard, body_bytes: int) -> None:
        self._embedders = embedders
        self._guard = guard
        self._body_bytes = body_bytes

    async def embeddings(self, request: Request) -> EmbeddingList:
        """Answer `POST /v1/embeddings`.

        Raises:
            ApiError: the request is refused.
        """
        asked = parse(EmbeddingsRequest, read_json(await read_body(request, self._body_bytes)))
        embedder = self._find(asked.model)
        dim = (await embedder.about()).dim
        if asked.dimensions not in (None, dim):
            raise invalid(f"'dimensions': the vectors of this model have {dim}", "dimensions")
        given = [asked.input] if isinstance(asked.input, str) else asked.input
        references = [
            Reference(part.image_url.url, part.image_url.detail, f"input[{place}].image_url.url")
            for place, part in enumerate(given)
            if isinstance(part, ImagePart)
        ]
        images = iter(await self._guard.load(references, MAX_IMAGES))
        items: list[Item] = [
            next(images) if isinstance(part, ImagePart) else part.text if isinstance(part, TextPart) else part
            for part in given
        ]
        paths = ["input" if isinstance(asked.input, str) else f"input[{place}]" for place in range(len(items))]
        features = await self._embed(embedder, items, paths, request)
        vectors = [_encoded(feature.vector_D, asked.encoding_format) for feature in features]
        return EmbeddingList(
            data=[Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)],
            model=asked.model,
            usage=_usage(features),
        )

    async def score(self, request: Request) -> ClipScores:
        """Answer `POST /v1/clip/score`.

        Raises:
            ApiError: the request is refused.
        """
        asked = parse(ClipScoreRequest, read_json(await read_body(request, self._body_bytes)))
        embedder = self._find(asked.model)
        if asked.pairwise and len(asked.images) != len(asked.texts):
            raise invalid(f"'pairwise': {len(asked.images)} pictures but {len(asked.texts)} texts", "pairwise")
        references = [Reference(url, "auto", f"images[{place}]") for place, url in enumerate(asked.images)]
        images = await self._guard.load(references, MAX_IMAGES)
        paths = [f"images[{place}]" for place in range(len(images))]
        paths += [f"texts[{place}]" for place in range(len(asked.texts))]
        features = await self._embed(embedder, [*images, *asked.texts], paths, request)
        matrix_ND = np.stack([feature.vector_D for feature in features])
        images_ND, texts_ND = matrix_ND[: len(images)], matrix_ND[len(images) :]
        cosines = (images_ND * texts_ND).sum(1, keepdims=True) if asked.pairwise else images_ND @ texts_ND.T
        about = await embedder.about()
        return ClipScores(
            scores=cosines.tolist(),
            logit_scale=about.logit_scale,
            logit_bias=about.logit_bias,
            model=asked.model,
            usage=_usage(features),
        )

    def _find(self, model: str) -> Embedder:
        if model not in self._embedders:
            raise not_found(model, tuple(self._embedders))
        return self._embedders[model]

    async def _embed(
        self, embedder: Embedder, items: Sequence[Item], paths: Sequence[str], request: Request
    ) -> list[Feature]:
        visit: Visit = request.state.visit
        try:
            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
                tasks = [group.create_task(embedder.embed(item)) for item in items]
        except TimeoutError as error:
            raise ApiError(504, "deadline_exceeded", f"no answer within {DEADLINE_S:g} s") from error
        except ExceptionGroup as failed:  # the first cancels its siblings
            raise failed.exceptions[0] from None
        features = [task.result() for task in tasks]
        for feature, path in zip(features, paths, strict=True):
            if feature.cut:
                room, given = feature.num_tokens, feature.num_tokens + feature.cut
                message = f"the text has {given} tokens; the model reads {room}"
                raise ApiError(400, "context_length_exceeded", message, path)
        visit.num_tokens = sum(feature.num_tokens for feature in features)
        return features


def _encoded(vector_D: Any, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector_D.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector_D]


def _usage(features: Sequence[Feature]) -> EmbeddingUsage:
    tokens = sum(feature.num_tokens for feature in features)
    return EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)

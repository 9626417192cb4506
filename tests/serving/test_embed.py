"""Embeddings and CLIP scores equal a plain open_clip loop; asked by the official client."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import openai
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from sightloom.serving.app import build_app
from sightloom.serving.clip import About, ClipModel, ClipSettings, LocalEmbedder
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.transformers import TransformersEngine

from .conftest import data_url, picture

TEXTS = ["a red circle", "how many?", "ünïcode 猫"]
ATOL = 1e-4  # fp32; a batch may sum in another order than a loop


@pytest.fixture(scope="module")
def asked(tiny_clip: Path, engine: TransformersEngine) -> Iterator[TestClient]:
    model = ClipModel(ClipSettings(model=f"local-dir:{tiny_clip}"))
    app = build_app(EndpointConfig(), LocalDispatcher("sightloom", engine), {"tiny": LocalEmbedder(model)})
    with TestClient(app, base_url="http://127.0.0.1/v1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(asked: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=asked, max_retries=0)


@pytest.fixture(scope="module")
def plain(tiny_clip: Path) -> tuple[np.ndarray, np.ndarray]:
    """The loop that anybody would write: texts and pictures one by one."""
    name = f"local-dir:{tiny_clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        texts = [model.encode_text(tokenizer([text]), normalize=True)[0].numpy() for text in TEXTS]
        images = [
            model.encode_image(preprocess(Image.open(io.BytesIO(picture(seed=seed))))[None], normalize=True)[0].numpy()
            for seed in range(3)
        ]
    return np.stack(texts), np.stack(images)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_the_official_client_gets_the_loop_s_vectors_in_both_encodings(
    client: openai.OpenAI, plain: tuple[np.ndarray, np.ndarray], form: Any
) -> None:
    reply = client.embeddings.create(model="tiny", input=TEXTS, encoding_format=form)
    vectors = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding
        for one in reply.data
    ]
    np.testing.assert_allclose(vectors, plain[0], atol=ATOL)
    assert [one.index for one in reply.data] == [0, 1, 2] and reply.usage.prompt_tokens >= 9
    one = client.embeddings.create(model="tiny", input=TEXTS[0])  # the client asks for base64 by itself
    np.testing.assert_allclose(one.data[0].embedding, plain[0][0], atol=ATOL)


def test_pictures_and_texts_of_one_request_keep_their_places(
    asked: TestClient, plain: tuple[np.ndarray, np.ndarray]
) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(picture(seed=0))}},
        {"type": "text", "text": TEXTS[1]},
        {"type": "image_url", "image_url": {"url": data_url(picture(seed=2))}},
    ]
    answer = asked.post("/embeddings", json={"model": "tiny", "input": parts}).json()
    expected = [plain[1][0], plain[0][1], plain[1][2]]
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], expected, atol=ATOL)


def test_scores_are_cosines_of_all_pairs_or_of_each_pair(
    asked: TestClient, plain: tuple[np.ndarray, np.ndarray]
) -> None:
    body = {"model": "tiny", "images": [data_url(picture(seed=seed)) for seed in range(3)], "texts": TEXTS}
    whole = asked.post("/clip/score", json=body).json()
    np.testing.assert_allclose(whole["scores"], plain[1] @ plain[0].T, atol=ATOL)
    pairs = asked.post("/clip/score", json={**body, "pairwise": True}).json()
    np.testing.assert_allclose(pairs["scores"], np.diag(plain[1] @ plain[0].T)[:, None], atol=ATOL)
    assert whole["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4) and whole["logit_bias"] is None


REFUSED = [
    ("/embeddings", {"model": "other", "input": "a"}, 404, "model_not_found"),
    ("/embeddings", {"model": "tiny", "input": "a", "dimensions": 7}, 400, "invalid_value"),
    ("/embeddings", {"model": "tiny", "input": []}, 400, "invalid_value"),
    ("/embeddings", {"model": "tiny"}, 400, "missing_parameter"),
    ("/embeddings", {"model": "tiny", "input": ["a"] * 257}, 400, "invalid_value"),
    ("/embeddings", {"model": "tiny", "input": [[1, 2]]}, 400, "invalid_value"),
    ("/embeddings", {"model": "tiny", "input": "a", "truncate": True}, 400, "unknown_parameter"),
    ("/clip/score", {"model": "tiny", "images": ["file:///etc/passwd"], "texts": ["a"]}, 400, "media_url_not_allowed"),
    ("/clip/score", {"model": "tiny", "images": ["data:,x"], "texts": ["a"]}, 400, "invalid_image"),
    (
        "/clip/score",
        {"model": "tiny", "images": ["data:,x"], "texts": ["a"] * 2, "pairwise": True},
        400,
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "code"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_embedded_is_refused(
    asked: TestClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    response = asked.post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


def test_what_arrives_together_shares_a_pass(tiny_clip: Path) -> None:
    model = ClipModel(ClipSettings(model=f"local-dir:{tiny_clip}"))
    sizes: list[int] = []
    features = model.features
    model.features = lambda items: (sizes.append(len(items)), features(items))[1]  # type: ignore[method-assign]

    async def scenario() -> None:
        embedder = LocalEmbedder(model)
        await asyncio.gather(*(embedder.embed(f"text {number}") for number in range(40)))

    asyncio.run(scenario())
    assert sizes == [32, 8]


def test_a_text_beyond_the_model_s_window_is_refused_and_not_cut(asked: TestClient) -> None:
    long = "a red circle beside a blue square " * 40
    reply = asked.post("/embeddings", json={"model": "tiny", "input": ["short", long]})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["code"] == "context_length_exceeded" and error["param"] == "input[1]"
    assert next(int(word) for word in error["message"].split() if word.isdigit()) > 77
    scored = {"model": "tiny", "images": [data_url(picture())], "texts": [long]}
    assert asked.post("/clip/score", json=scored).json()["error"]["param"] == "texts[0]"


def test_a_model_that_fails_tells_everybody_who_waits(engine: TransformersEngine) -> None:
    class Failing:
        about = About(4, 1.0, None)

        def features(self, items: Any) -> Any:
            raise ZeroDivisionError

    app = build_app(EndpointConfig(), LocalDispatcher("sightloom", engine), {"bad": LocalEmbedder(Failing())})  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for _ in range(2):
            reply = client.post("/v1/embeddings", json={"model": "bad", "input": TEXTS})
            assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal_error"
        assert client.get("/admin/state").json()["limits"]["in_flight"] == 0

"""What a trained model's answers allow: the vote among samples, and an export's probes asked where it is served."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sightloom.model.load import load
from sightloom.serving.app import EndpointConfig, build_app
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.probes import PROBES, probe_match
from sightloom.training.export import Probe, export

from .conftest import data_url
from .test_app import CHAT, events
from .trained import COLOURS, QUESTION, conversation, encoded, make_trained

pytestmark = pytest.mark.long  # it trains first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = make_trained(tmp_path_factory.mktemp("trained") / "nano")
    probes = [Probe(conversation(colour, True), encoded(colour)) for colour in list(COLOURS)[:4]]
    out = trained.parent / "export"
    export(load(str(trained)), out, {}, probes, None)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(folder, "3")
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.stop(5.0))


@pytest.fixture(scope="module")
def client(engine: TransformersEngine) -> Iterator[TestClient]:
    app = build_app(EndpointConfig(keep_alive_s=0.01), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(encoded("red"))}}, {"type": "text", "text": QUESTION}]
    return {"model": "sightloom", "messages": [{"role": "user", "content": parts}], "max_tokens": 60, **changes}


def test_the_majority_of_the_samples_answers_and_all_tokens_are_counted(client: TestClient) -> None:
    hot = {"temperature": 1.6, "seed": 5}
    single = client.post(CHAT, json=body(**hot, n=8)).json()
    vote = {"self_consistency": {"n": 8, "temperature": 1.6}}
    whole = client.post(CHAT, json=body(seed=5, sightloom=vote)).json()
    good = [choice for choice in single["choices"] if choice["sightloom"]["thinking"] in ("complete", "off")
            and choice["message"]["content"]]  # fmt: skip
    said = Counter(" ".join(choice["message"]["content"].lower().rstrip(".").split()) for choice in good)
    (choice,) = whole["choices"]
    answer, votes = said.most_common(1)[0]
    assert len(said) > 1, "the samples must differ, or the vote shows nothing"
    assert choice["message"]["content"].lower().rstrip(".") == answer
    assert choice["sightloom"]["self_consistency"] == {
        "n": 8, "votes": votes, "agreement": pytest.approx(votes / len(good), abs=1e-4),
    }  # fmt: skip
    assert whole["usage"] == single["usage"]
    assert "self_consistency" not in single["choices"][0]["sightloom"]


def test_a_streamed_vote_keeps_the_connection_alive_and_then_says_the_winner(client: TestClient) -> None:
    vote = {"self_consistency": {"n": 4}}
    whole = client.post(CHAT, json=body(seed=1, sightloom=vote)).json()
    text = client.post(
        CHAT, json=body(seed=1, sightloom=vote, stream=True, stream_options={"include_usage": True})
    ).text
    chunks = events(text)
    deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(part["delta"].get("content", "") for part in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["sightloom"] == whole["choices"][0]["sightloom"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert ":keep-alive" in text


def test_an_export_answers_its_probes_where_it_is_served(folder: Path, engine: TransformersEngine) -> None:
    assert asyncio.run(probe_match(engine, folder)) == 1.0


def test_probes_of_another_model_are_seen(folder: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / PROBES).read_text().splitlines()]
    lines[0]["image"] = base64.b64encode(encoded("blue")).decode()  # the kept answer says red
    (tmp_path / PROBES).write_text("\n".join(json.dumps(line) for line in lines))
    assert asyncio.run(probe_match(engine, tmp_path)) == 0.75
    assert asyncio.run(probe_match(engine, tmp_path / "none")) is None

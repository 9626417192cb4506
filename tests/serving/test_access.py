"""Keys, scopes, quotas and the headers of every answer."""

import json
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sightloom.errors import UserMistake
from sightloom.serving.app import PLAYGROUND, build_app
from sightloom.serving.auth import KeyRing, new_key
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher, Readiness, Route
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.errors import ApiError
from sightloom.serving.limits import Bucket, Limits, Pace, Quota
from sightloom.serving.ports import check_host

ASK = {"model": "sightloom", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0}


def write(path: Path, *entries: object) -> str:
    path.write_text(json.dumps([entry.model_dump(mode="json") for entry in entries]))  # type: ignore[attr-defined]
    return str(path)


def test_keys_open_what_their_scopes_say(tmp_path: Path, engine: TransformersEngine) -> None:
    infer, entry = new_key()
    pin, pin_entry = new_key(frozenset({"infer", "pin"}))
    old, old_entry = new_key()
    expired = old_entry.model_copy(update={"expires_at": time.time() - 1})
    few = entry.model_copy(update={"rpm": 2})
    keys = write(tmp_path / "keys.json", few, pin_entry, expired)
    app = build_app(EndpointConfig(keys=keys), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client:

        def ask(key: str, model: str = "sightloom") -> tuple[int, str, dict[str, str]]:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            response = client.post("/v1/chat/completions", json={**ASK, "model": model}, headers=headers)
            code = response.json().get("error", {}).get("code", "")
            assert infer not in response.text
            return response.status_code, code, dict(response.headers)

        assert ask("")[:2] == (401, "invalid_api_key")
        assert ask(infer[:-1] + "?")[:2] == (401, "invalid_api_key")
        assert ask(old)[:2] == (401, "expired_api_key")
        status, _, headers = ask(infer)
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert ask(infer, "sightloom:3")[:2] == (403, "insufficient_scope")
        status, code, headers = ask(infer)
        assert (status, code) == (429, "rate_limit_exceeded")
        assert int(headers["retry-after"]) >= 1 and headers["x-ratelimit-remaining-requests"] == "0"
        assert ask(pin, "sightloom:3")[0] == 200
        assert client.get("/v1/models").status_code == 401
        listed = client.get("/v1/models", headers={"authorization": f"Bearer {infer}"})
        assert listed.status_code == 429 or [one["id"] for one in listed.json()["data"]] == ["sightloom"]
        for open_to_all in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert client.get(open_to_all).status_code == 200


def test_a_changed_key_file_is_read_again_and_a_broken_one_is_not_believed(tmp_path: Path) -> None:
    first, first_entry = new_key()
    second, second_entry = new_key()
    path = tmp_path / "keys.json"
    ring = KeyRing(write(path, first_entry))
    assert ring.identify(f"Bearer {first}") == first_entry
    write(path, second_entry)
    time.sleep(1.1)
    assert ring.identify(f"Bearer {second}") == second_entry
    with pytest.raises(ApiError):
        ring.identify(f"Bearer {first}")
    path.write_text("{")
    time.sleep(1.1)
    assert ring.identify(f"Bearer {second}") == second_entry


def test_a_broken_key_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("[{}]")
    with pytest.raises(UserMistake, match=r"keys\.json"):
        KeyRing(str(tmp_path / "keys.json"))


def test_without_keys_only_loopback_is_listened_on() -> None:
    check_host("127.0.0.1", EndpointConfig())
    check_host("::1", EndpointConfig())
    check_host("0.0.0.0", EndpointConfig(keys="keys.json"))
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(UserMistake, match="without keys"):
            check_host(host, EndpointConfig())


def test_a_bucket_refills_evenly_and_recovers_from_overdraft() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(90)
    assert bucket.wait_s(1) == pytest.approx(31)
    now[0] = 31.0
    assert bucket.wait_s(1) == 0
    now[0] = 1000.0
    assert bucket.level == 60


def test_one_key_cannot_take_more_places_than_its_own() -> None:
    _, entry = new_key()
    limits = Limits(max_in_flight=3)
    narrow = entry.model_copy(update={"max_concurrent": 1})
    quota = limits.enter(narrow)
    with pytest.raises(ApiError) as caught:
        limits.enter(narrow)
    assert caught.value.code == "too_many_concurrent"
    limits.leave(quota, 0)
    limits.leave(limits.enter(narrow), 0)
    _, other = new_key()
    for _ in range(3):
        limits.enter(other)
    with pytest.raises(ApiError) as caught:
        limits.enter(narrow)
    assert caught.value.code == "engine_overloaded"


def test_the_playground_is_one_page_that_needs_nothing_from_outside(engine: TransformersEngine) -> None:
    app = build_app(EndpointConfig(), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert "<script>" not in page.text and "style=" not in page.text and "onclick" not in page.text
        names = [page.name for page in PLAYGROUND.iterdir() if page.suffix != ".html"]
        assert {"style.css", "page.js", "markdown.js", "reply.js", "request.js"} <= set(names)
        texts = [page.text, *(client.get(f"/playground/{name}").text for name in names)]
        assert all(client.get(f"/playground/{name}").status_code == 200 for name in names)
        whole = "\n".join(texts).replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in whole and "https://" not in whole and "innerHTML" not in whole
        assert "access-control-allow-origin" not in page.headers


def test_a_key_s_tokens_are_reserved_on_arrival_and_settled_with_the_true_usage() -> None:
    now, (_, entry) = [0.0], new_key()
    quota = Quota(entry.model_copy(update={"tpm": 100}), lambda: now[0])
    quota.enter()
    assert quota.reserve(70) == 70
    with pytest.raises(ApiError) as caught:
        quota.reserve(40)
    assert caught.value.code == "rate_limit_exceeded" and caught.value.retry_after_s == 7
    quota.leave(20, 70)
    assert quota.state() == {"running": 0, "requests_left": 599, "tokens_left": 80}
    now[0] = 60.0
    assert quota.reserve(5000) == 100, "what can never be there is not waited for"


def test_a_key_without_a_single_request_is_no_key(tmp_path: Path) -> None:
    _, entry = new_key()
    (tmp_path / "keys.json").write_text(json.dumps([{**entry.model_dump(mode="json"), "rpm": 0}]))
    with pytest.raises(UserMistake, match=r"keys\.json"):
        KeyRing(str(tmp_path / "keys.json"))


def test_who_is_refused_is_told_to_wait_as_long_as_the_queue_takes() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.wait_s(50) == 1, "nothing is known yet"
    for _ in range(20):
        now[0] += 0.5
        pace.ended()
    assert 5 <= pace.wait_s(11) <= 6
    assert pace.wait_s(0) == 1 and pace.wait_s(10_000) == 30


def test_a_fault_of_ours_is_an_answer_like_any_other(engine: TransformersEngine) -> None:
    class Faulty(LocalDispatcher):
        async def route(self, model: str, subject: str) -> Route:
            raise ZeroDivisionError

        async def readiness(self) -> Readiness:
            raise ZeroDivisionError

    app = build_app(EndpointConfig(), Faulty("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        reply = client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
        ready = client.get("/readyz")
        text = client.get("/metrics").text
    assert ready.status_code == 500 and "x-request-id" in ready.headers and ready.json()["error"]["param"] is None
    assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal_error"
    assert reply.headers["x-request-id"] == "mine" and "content-security-policy" in reply.headers
    assert 'sightloom_requests_total{code="500"' in text and 'code="internal_error"' in text

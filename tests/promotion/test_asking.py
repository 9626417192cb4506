"""Waiting for a version behind an endpoint: trouble that passes is waited out, a mistake is told at once."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.endpoint import NotNow, listed_models
from sightloom.promotion import asking
from sightloom.promotion.asking import wait_until_pinned

from .world import World

UP = (200, ["m", "m:1", "m:2"])


@contextmanager
def endpoint(*answers: tuple[int, list[str]]) -> Iterator[str]:
    """Says its answers one by one, the last for ever; status 0 ends the connection without an answer."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, names = left.pop(0) if len(left) > 1 else left[0]
            if not status:
                return
            body = json.dumps({"data": [{"id": name} for name in names]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def world(make: Callable[[], World], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(asking, "_LOOK_S", 0.01)
    made = make().promoted()
    made.write("evaluate", 2)
    return made


def test_a_poll_that_fails_in_passing_is_repeated(world: World) -> None:
    with endpoint((503, []), (429, []), (0, []), (200, ["m", "m:1"]), (500, []), UP) as address:
        wait_until_pinned(address, "", world.ledger, world.versions[1])
    with endpoint((503, []), UP) as address:
        assert listed_models(address) == ["m", "m:1", "m:2"]
    with endpoint((503, [])) as address, pytest.raises(NotNow, match="HTTP 503"):
        listed_models(address, patience_s=0)


def test_what_does_not_pass_is_told(world: World) -> None:
    for answer, words in (((401, []), "refuses the key"), ((200, ["m"]), "shows no versions to this key")):
        with endpoint(answer) as address, pytest.raises(UserMistake, match=words):
            wait_until_pinned(address, "", world.ledger, world.versions[1])
    with pytest.raises(UserMistake, match="nothing answers"):
        wait_until_pinned("http://127.0.0.1:9", "", world.ledger, world.versions[1])
    with endpoint((503, [])) as address, pytest.raises(SightloomError, match=r"within 0\.05 s: .*HTTP 503"):
        wait_until_pinned(address, "", world.ledger, world.versions[1], timeout_s=0.05)
    with endpoint((404, [])) as address, pytest.raises(SightloomError, match="no OpenAI-compatible list"):
        wait_until_pinned(address, "", world.ledger, world.versions[1])

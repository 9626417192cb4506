"""The Jobs API's client against a dashboard that answers as Ray's does in bad moments."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from sightloom.cluster.client import JobsApi
from sightloom.cluster.clusters import Cluster
from sightloom.errors import SightloomError

LOST = b"aiohttp.client_exceptions.ClientOSError: [Errno 104] Connection reset by peer"


class Dashboard(http.server.BaseHTTPRequestHandler):
    answers: list[tuple[int, bytes]]
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[tuple[type[Dashboard], JobsApi]]:
    class Own(Dashboard):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Own, JobsApi(Cluster(address=f"http://127.0.0.1:{server.server_port}"), "")
    server.shutdown()


def test_a_dashboard_that_lost_a_nodes_agent_is_asked_again(dashboard: tuple[type[Dashboard], JobsApi]) -> None:
    answering, api = dashboard
    answering.answers = [(500, LOST), (500, LOST), (200, b'{"logs": "it runs"}')]
    assert api.logs("a-job") == "it runs" and answering.asked == 3


@pytest.mark.parametrize(("body", "times"), [(LOST, 4), (b"KeyError: 'x'", 1)])
def test_what_stays_wrong_is_said(dashboard: tuple[type[Dashboard], JobsApi], body: bytes, times: int) -> None:
    answering, api = dashboard
    answering.answers = [(500, body)]
    with pytest.raises(SightloomError, match="answers 500"):
        api.logs("a-job")
    assert answering.asked == times

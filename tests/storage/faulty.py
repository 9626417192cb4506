"""An S3 server that misbehaves: a proxy before moto's that resets, says 500 or SlowDown, and loses answers of puts."""

import random
import socket
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
HOP = frozenset({"connection", "transfer-encoding", "keep-alive"})


class FaultyProxy:
    """Forwards to a server; `share` of the requests fail in a way drawn from `faults`, the others pass.

    Faults: reset (nothing arrives), 500, 503 (SlowDown), lost (a put arrives, its answer does not), cut (half a body).
    """

    def __init__(self, target_port: int, share: float, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.share = share
        draw, lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self._body()
                with lock:
                    kinds = ["reset", "500", "503"] + (["lost"] * 3 if self.command == "PUT" else ["cut"])
                    fault = draw.choice(kinds) if draw.random() < proxy.share else "none"
                    proxy.counts[fault] += 1
                if fault == "reset":
                    return self._drop()
                if fault in ("500", "503"):
                    return self._answer(int(fault), [], INTERNAL if fault == "500" else SLOW_DOWN, len(INTERNAL))
                status, headers, data = self._forward(body)
                if fault == "lost":
                    return self._drop()
                self._answer(status, headers, data[: len(data) // 2] if fault == "cut" else data, len(data))
                if fault == "cut" and data:
                    self._drop()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    while self.rfile.readline().strip():
                        pass
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                upstream = HTTPConnection("127.0.0.1", target_port, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
                headers["Content-Length"] = str(len(body))
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                return answer.status, answer.getheaders(), data

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
                said = {name.lower() for name, _ in headers}
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in HOP and not (name.lower() == "content-length" and self.command != "HEAD"):
                        self.send_header(name, value)
                if self.command != "HEAD" or "content-length" not in said:
                    self.send_header("Content-Length", str(length if headers else len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _drop(self) -> None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *args: Any) -> None:
                del args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()
        time.sleep(0.05)

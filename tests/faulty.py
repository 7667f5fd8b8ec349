"""An HTTP server that hands requests on to another one, and fails as it is told to."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["503", "truncated", "lost"]
"""Refused; half of the answer; done, but the answer never arrives."""


class Faulty:
    """What goes wrong: `plan` holds the faults of the next requests of a method, in order."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.plan: list[tuple[str, Fault]] = []

    def next(self, method: str) -> Fault | None:
        for index, (wanted, fault) in enumerate(self.plan):
            if wanted == method:
                del self.plan[index]
                return fault
        return None


@contextmanager
def in_front_of(upstream: str) -> Iterator[Faulty]:
    """Serve meanwhile."""
    target = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            fault = faulty.next(self.command)
            if self.headers.get("Expect"):
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault == "503":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(target)
            connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Expect"})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.close_connection = bool(fault)
            if fault == "lost":
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if fault == "truncated" else content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        faulty = Faulty(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield faulty
        finally:
            server.shutdown()

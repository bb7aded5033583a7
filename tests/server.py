"""A local HTTP server with configurable responses: partial, delayed, wrong or missing."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Response:
    """The response to a request.

    `cut_after` closes the connection after that many bytes of the body (with `reset`, without a shutdown).
    `content_length` replaces the true Content-Length (-1: no header). `ranges` and `if_range` enable Range and
    If-Range. `delay` is a pause in seconds after `cut_after` bytes (None: 0 bytes) before the rest is sent.
    """

    content: bytes = b""
    status: int = 200
    etag: str | None = '"1"'
    cut_after: int | None = None
    reset: bool = False
    content_length: int | None = None
    ranges: bool = True
    if_range: bool = True
    delay: float = 0.0
    location: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReceivedRequest:
    """A received request; the names of `headers` are case-insensitive."""

    method: str
    path: str
    headers: Message

    @property
    def range(self) -> str | None:
        return self.headers["Range"]


class Server(ThreadingHTTPServer):
    """A server of the responses given to `serve`: in order for each path, the last one repeatedly.

    As a proxy it receives complete URLs as paths: serve("http://example.org/a.zip", …).
    """

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.requests: list[ReceivedRequest] = []
        self.stopping = threading.Event()
        self._responses: dict[str, list[Response]] = {}

    @property
    def address(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_port}"

    def serve(self, path: str, *responses: Response | bytes) -> str:
        """Set the responses of a path and return its URL."""
        self._responses[path] = [
            Response(response) if isinstance(response, bytes) else response for response in responses
        ]
        return self.address + path if path.startswith("/") else path

    def count(self, path: str = "") -> int:
        """Return the number of requests for a path, or of all."""
        return sum(path in ("", request.path) for request in self.requests)

    def next_response(self, path: str) -> Response:
        responses = self._responses.get(path) or self._responses.get(urlsplit(path).path) or [Response(status=404)]
        return responses.pop(0) if len(responses) > 1 else responses[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors, since tests close connections early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Log nothing to stderr, which tests read."""

    def _respond(self, body: bool) -> None:
        self.server.requests.append(ReceivedRequest(self.command, self.path, self.headers))
        self.close_connection = True
        response = self.server.next_response(self.path)
        status, content, extra = self._select_range(response)
        self.send_response(status)
        self.send_header("Connection", "close")
        if response.content_length != -1:
            self.send_header(
                "Content-Length", str(len(content) if response.content_length is None else response.content_length)
            )
        optional = {"ETag": response.etag, "Location": response.location}
        for name, value in {**optional, **extra, **response.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        self.wfile.write(
            content[: response.cut_after] if response.cut_after is not None else b"" if response.delay else content
        )
        self.wfile.flush()
        if response.delay and not self.server.stopping.wait(response.delay):
            self.wfile.write(content[response.cut_after or 0 :])
        if response.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _select_range(self, response: Response) -> tuple[int, bytes, dict[str, str]]:
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_unchanged = self.headers.get("If-Range") in (None, response.etag) or not response.if_range
        if response.status != 200 or not requested or not response.ranges or not is_unchanged:
            return response.status, response.content, {}
        start, length = int(requested[1]), len(response.content)
        if start >= length:
            return 416, b"", {"Content-Range": f"bytes */{length}"}
        return 206, response.content[start:], {"Content-Range": f"bytes {start}-{length - 1}/{length}"}


@contextmanager
def run_server(certificate: Path | None = None) -> Iterator[Server]:
    """Run a server during the context; with a certificate file, which contains the key too, over https."""
    with Server(certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()

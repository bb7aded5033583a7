"""A web server on this machine that answers as it is told: in parts, late, wrongly, or not at all."""

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
    """How a request is answered.

    `cut` closes the connection after so many bytes of the body (`reset` rudely), `declared` is the Content-Length told
    instead of the true one (-1: none), `ranges` is whether Range is obeyed, `if_range` whether If-Range is too, and
    `silence` how many seconds nothing happens after `cut` bytes (0 without) before the rest follows.
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
    """A request that came: `path` is the address of what was asked for, `headers` by name, whatever their case."""

    method: str
    path: str
    headers: Message

    @property
    def range(self) -> str | None:
        return self.headers["Range"]


class Server(ThreadingHTTPServer):
    """Serves what `serve` was given. A path's requests take its answers one after another; the last one stays.

    As a proxy it is asked for whole addresses, which are paths as well: serve("http://example.org/a.zip", …).
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
        """Answer a path so; gives its address."""
        self._responses[path] = [Response(answer) if isinstance(answer, bytes) else answer for answer in responses]
        return self.address + path if path.startswith("/") else path

    def count(self, path: str = "") -> int:
        """How many requests for a path have come, or for all."""
        return sum(path in ("", seen.path) for seen in self.requests)

    def next_response(self, path: str) -> Response:
        answers = self._responses.get(path) or self._responses.get(urlsplit(path).path) or [Response(status=404)]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave early are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Nothing on standard error, which tests read."""

    def _respond(self, body: bool) -> None:
        self.server.requests.append(ReceivedRequest(self.command, self.path, self.headers))
        self.close_connection = True
        answer = self.server.next_response(self.path)
        status, content, extra = self._select_range(answer)
        self.send_response(status)
        self.send_header("Connection", "close")
        if answer.content_length != -1:
            self.send_header(
                "Content-Length", str(len(content) if answer.content_length is None else answer.content_length)
            )
        optional = {"ETag": answer.etag, "Location": answer.location}
        for name, value in {**optional, **extra, **answer.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        self.wfile.write(
            content[: answer.cut_after] if answer.cut_after is not None else b"" if answer.delay else content
        )
        self.wfile.flush()
        if answer.delay and not self.server.stopping.wait(answer.delay):
            self.wfile.write(content[answer.cut_after or 0 :])
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _select_range(self, answer: Response) -> tuple[int, bytes, dict[str, str]]:
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_unchanged = self.headers.get("If-Range") in (None, answer.etag) or not answer.if_range
        if answer.status != 200 or not requested or not answer.ranges or not is_unchanged:
            return answer.status, answer.content, {}
        start, length = int(requested[1]), len(answer.content)
        if start >= length:
            return 416, b"", {"Content-Range": f"bytes */{length}"}
        return 206, answer.content[start:], {"Content-Range": f"bytes {start}-{length - 1}/{length}"}


@contextmanager
def run_server(certificate: Path | None = None) -> Iterator[Server]:
    """A server for as long as the context lasts; with a certificate, which holds its key too, an encrypted one."""
    with Server(certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()

"""Small HTTP servers that answer as MLflow servers do, well or badly."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Answer = Callable[[http.server.BaseHTTPRequestHandler], tuple[int, str]]
"""From a request to a status and a body."""


def basic(user: str, password: str) -> str:
    """The header of a login with a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def healthy(request: http.server.BaseHTTPRequestHandler, prefix: str = "", login: str | None = None) -> tuple[int, str]:
    """An empty MLflow server without ``/health``, below ``prefix``, that asks for ``login`` if there is one."""
    if login is not None and request.headers.get("Authorization") != login:
        return 401, "You are not authenticated."
    if not request.path.startswith(f"{prefix}/api/2.0/mlflow/"):
        return 404, "not found"
    return 200, json.dumps({"experiments": []})


@contextmanager
def server(answer: Answer, certificate: Path | None = None) -> Iterator[str]:
    """Address of a server on this machine; with a certificate (PEM with its key) it speaks TLS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = answer(self)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"{scheme}://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def hanging(request: http.server.BaseHTTPRequestHandler) -> tuple[int, str]:
    """A server that accepts a request and never answers it."""
    time.sleep(3600)
    return 200, "{}"

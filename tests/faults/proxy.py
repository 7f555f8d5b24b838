"""Stands between a client and an MLflow server, and lets the server go away, hang, break or lose answers.

Usage: ``python proxy.py UPSTREAM_PORT MODE_FILE``; prints its own port. The mode is the content of the file:

* ``pass``: all goes through
* ``gone``: nobody listens
* ``500``: every request is answered so
* ``hang``: requests are taken and never answered
* ``slow SECONDS``: each answer takes that much longer
* ``lose``: requests go through, and their answers do not come back
"""

from __future__ import annotations

import http.client
import http.server
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:  # noqa: C901 (a handler within)
    """Serve until the process is killed."""
    upstream, mode_file = int(sys.argv[1]), Path(sys.argv[2])

    def mode() -> str:
        return mode_file.read_text().strip() or "pass"

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            how = mode()
            while how == "hang":
                time.sleep(0.05)
                how = mode()
                if how != "hang":
                    self.close_connection = True
                    return
            if how == "500":
                self.answer(500, {}, b"Internal Server Error")
                return
            if how.startswith("slow"):
                time.sleep(float(how.split()[1]))
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if mode() == "lose":
                self.close_connection = True
                return
            self.answer(answer.status, dict(answer.getheaders()), content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # a client that has given up
                self.close_connection = True

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(port, flush=True)
    while True:
        if mode() == "gone":
            time.sleep(0.02)
            continue
        server = Server(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        while mode() != "gone":
            time.sleep(0.02)
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()

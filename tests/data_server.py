"""A small HTTP server on loopback, with a choice of faults, for the tests of downloads."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Answers on loopback; the first part of the path says how."""

    requests: list[str]
    files: dict[str, bytes]

    def handle_error(self, request, client_address):
        """Say nothing: some clients hang up on purpose."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        self.server.requests.append(self.path)
        _, how, name = self.path.split("/")
        content = self.server.files[name]
        if how == "missing":
            self.send_error(404)
            return
        if how == "moved":
            self.send_response(302)
            self.send_header("Location", f"/right/{name}")
            self.end_headers()
            return
        if how == "wrong":
            content = content[:-1] + b"?"
        if how == "long":
            content += b"more"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if how == "cut" else content)

    def log_message(self, format, *args):
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    """A running server of `files`."""
    with Server(("127.0.0.1", 0), _Handler) as server:
        server.requests, server.files = [], files
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

"""A small HTTP server on 127.0.0.1 that misbehaves on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """What the server does; a test changes it between requests.

    `cuts`: after how many bytes each of the next connections is broken; `ranges`: whether it knows Range.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.tag = '"one"'
        self.cuts: list[int] = []
        self.ranges = True
        self.status = 200
        self.kind = "application/octet-stream"
        self.location = ""
        self.requests: list[str | None] = []
        self.url = ""


@contextmanager
def serve(content: bytes) -> Iterator[Behaviour]:
    behaviour = Behaviour(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.requests.append(wanted)
            if behaviour.location:
                self.send_response(302)
                self.send_header("Location", behaviour.location)
                self.end_headers()
                return
            start = 0
            if wanted and behaviour.ranges and self.headers.get("If-Range") == behaviour.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            content = behaviour.content
            if start and start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if start else behaviour.status)
            self.send_header("Content-Type", behaviour.kind)
            self.send_header("ETag", behaviour.tag)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = start + behaviour.cuts.pop(0) if behaviour.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    behaviour.url = f"http://127.0.0.1:{server.server_port}/model.pt"
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A server with the pages that a test gives it: `odd.py PAGES --port N`, where PAGES is JSON.

A page is `[status, body]` by its path; the body may also be {"repeat": [TEXT, COUNT]}. What is asked for is
printed. `POST /sleep` and `POST /wake_up` do as vLLM's do, and a request that comes while it sleeps ends it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGES: dict[str, Any] = {"/health": [200, ""], **json.loads(sys.argv[1])}
asleep = [False]


class Handler(BaseHTTPRequestHandler):
    """Pages by their path."""

    def do_GET(self) -> None:
        self.page()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in ("/sleep", "/wake_up"):
            asleep[0] = self.path == "/sleep"
        elif asleep[0]:
            print("CUDA error: request to a sleeping engine", flush=True)
            os._exit(1)
        print(f"POST {self.path}", flush=True)
        self.page()

    def page(self) -> None:
        if self.path == "/is_sleeping" and "/sleep" in PAGES:
            status, body = 200, json.dumps({"is_sleeping": asleep[0]})
        else:
            status, body = PAGES.get(self.path, [404, '{"detail":"Not Found"}'])
        if isinstance(body, dict):
            text, count = body["repeat"]
            body = text * count
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()

"""A server of one file on this machine, and what the tests of published files share."""

import hashlib
import http.server
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from solverbench import weights
from solverbench.cli import main

DATA = bytes(range(256)) * 12_000  # 3 MB: several blocks
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "test-file"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, as badly as a test asks for.

    Attributes:
        data: the file.
        tag: its ETag; empty for none.
        cuts: bytes of an answer after which the connection ends, for one request after another.
        ranges: whether ``Range`` is obeyed.
        faults: status codes to answer before anything else, one a request.
        redirect: address to send everyone to.
        seen: headers of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.tag, self.redirect = DATA, '"one"', ""
        self.cuts: list[int] = []
        self.faults: list[int] = []
        self.ranges = True
        self.seen: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault of the server."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(self.headers)
        if server.faults or server.redirect:
            self.send_response(server.faults.pop(0) if server.faults else 302)
            self.send_header("Location", server.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self.start() if server.ranges else 0
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            whole = len(server.data)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = True

    def start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, self.server.tag)
        return int(asked[1]) if asked and same else 0

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


def listed(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> weights.Item:
    """A catalogue entry of a test; the loopback interface is allowed where users' files are not."""
    given = {"kind": "backbone", "file": "a/file.bin", "about": "x", "licence": "x"} | fields
    item = weights.Item.model_construct(name=NAME, **given)
    monkeypatch.setitem(weights.catalogue(), NAME, item)
    return item


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def leftovers(folder: Path) -> list[str]:
    """Names of parts and their notes."""
    return [p.name for p in folder.rglob("*") if ".part" in p.name or p.suffix == ".tmp"]

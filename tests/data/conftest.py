"""Small files in the formats of the real data sets, a network that is down, and one that is this machine."""

from __future__ import annotations

import gzip
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Serve = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    """Put together an idx file of unsigned bytes, after the description of the format."""
    return lambda array: bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def write_idx_data_set(idx_bytes: Callable[[np.ndarray], bytes]) -> Callable[..., dict[str, np.ndarray]]:
    """Write the four files of an MNIST-like data set into a folder; return the arrays by file name."""

    def write(folder: Path, train: int, test: int, *, compress: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        arrays = {}
        for part, count in (("train", train), ("t10k", test)):
            arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            arrays[f"{part}-labels-idx1-ubyte"] = random.integers(0, 10, count, dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            content = idx_bytes(array)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        return arrays

    return write


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network on which no name resolves; the list fills with the URLs that were asked for."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, **_: Any) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("the network is down")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


class LocalServer:
    """An HTTP server on 127.0.0.1 whose answer to each path is a function given here."""

    def __init__(self) -> None:
        self.answers: dict[str, Serve] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.answers.get(self.path, lambda handler: handler.send_error(404))(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def serve(self, path: str, content: bytes) -> None:
        """Answer with ``content``."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer

    def serve_slowly(self, path: str, content: bytes, pieces: int, pause: float) -> None:
        """Answer with ``content`` in pieces, with a pause before each."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            size = -(-len(content) // pieces)
            for start in range(0, len(content), size):
                self.closing.wait(pause)
                handler.wfile.write(content[start : start + size])
                handler.wfile.flush()

        self.answers[path] = answer

    def hang(self, path: str, beginning: bytes = b"") -> None:
        """Accept the connection, send ``beginning`` of a longer answer, if any, and then nothing."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            if beginning:
                handler.send_response(200)
                handler.send_header("Content-Length", "1000000")
                handler.end_headers()
                handler.wfile.write(beginning)
                handler.wfile.flush()
            self.closing.wait()

        self.answers[path] = answer

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def local_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("no_proxy", "*")
    server = LocalServer()
    yield server
    server.close()

"""A server, and a folder of files for each test."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from solverbench import transfer, weights
from tests.weights.serving import Server


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files for the test alone, and no waiting between attempts."""
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "weights"))
    for key in weights.OFFLINE:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    return tmp_path / "weights"

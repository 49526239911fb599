"""Files out of archives and from the hub, and verification."""

import io
import json
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from solverbench import weights
from solverbench.errors import SolverBenchError
from solverbench.weights_catalogue import Hub
from tests.weights.serving import DATA, NAME, SHA256, Server, listed, run


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return made.getvalue()


@pytest.mark.parametrize("inside", ["model.ckpt", "folder/model.ckpt"])
def test_a_file_is_taken_out_of_its_archive(
    inside: str, server: Server, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    listed(monkeypatch, url=server.url, member="model.ckpt", sha256=SHA256)
    server.data = archive(**{inside: DATA, "readme.txt": b"x"})
    path = weights.fetch(NAME)
    assert path.read_bytes() == DATA
    assert {p.name for p in path.parent.iterdir()} == {
        *("file.bin", "file.bin.json", ".file.bin.lock")
    }


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"model.ckpt": b"x", "../evil": b"x"}, "names that leave it"),
        ({"../model.ckpt": b"x"}, "names that leave it"),
        ({"/model.ckpt": b"x"}, "names that leave it"),
        ({"..\\model.ckpt": b"x"}, "names that leave it"),
        ({"C:/model.ckpt": b"x"}, "names that leave it"),
        ({"other": b"x"}, "it holds 0 files named model.ckpt"),
        ({"a/model.ckpt": b"x", "b/model.ckpt": b"x"}, "it holds 2 files"),
        (None, "not a zip file"),
    ],
)
def test_a_bad_archive_is_refused_and_writes_nothing(
    members: dict[str, bytes] | None,
    said: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
) -> None:
    listed(monkeypatch, url=server.url, member="model.ckpt")
    server.data = DATA if members is None else archive(**members)
    with pytest.raises(SolverBenchError, match=said):
        weights.fetch(NAME)
    assert {p.name for p in place.parent.rglob("*") if p.is_file()} == {".file.bin.lock"}


class Client(types.ModuleType):
    """Stands for the hub's client, which needs the hub."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub")
        self.files = {"unet/a.bin": b"a", "b.json": b"{}"}
        self.asked: list[dict[str, Any]] = []

    def HfApi(self) -> Any:  # noqa: N802 (the client's name)
        newest = types.SimpleNamespace(sha=f"revision{len(self.asked)}")
        return types.SimpleNamespace(repo_info=lambda repo, repo_type: newest)

    def snapshot_download(self, repo: str, **how: Any) -> None:
        self.asked.append({"repo": repo} | how)
        for name, data in ({".cache/x": b""} | self.files).items():
            file = how["local_dir"] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def test_a_folder_of_the_hub_arrives_with_its_revision(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(repo="a/b", patterns=("b.json", "unet/*"))
    listed(monkeypatch, hub=hub, file="sd/folder")
    path = weights.fetch(NAME)
    inside = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert inside == {"unet/a.bin", "b.json"}
    assert client.asked[0]["allow_patterns"] == ["b.json", "unet/*"]
    record = json.loads(path.with_name("folder.json").read_text())
    assert record["revision"] == "revision0"
    assert weights.verify(NAME).state == "ok"
    (path / "unet" / "a.bin").write_bytes(b"?")
    assert weights.verify(NAME) == (NAME, "damaged", f"{path}: unet/a.bin missing or changed")
    weights.fetch(NAME, force=True)
    assert client.asked[1]["revision"] == "revision0"  # the recorded one, not the newest
    assert weights.verify(NAME).state == "ok"


def test_a_file_of_the_hub_is_a_file_here(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, hub=Hub(repo="a/b", type="dataset", file="unet/a.bin"))
    assert weights.fetch(NAME).read_bytes() == b"a"
    assert client.asked[0]["repo_type"] == "dataset"
    listed(monkeypatch, hub=Hub(repo="a/b", file="c.bin"), file="c")
    with pytest.raises(SolverBenchError, match=r"a/b on the Hugging Face hub has no c\.bin"):
        weights.fetch(NAME)


def test_without_the_extra_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    listed(monkeypatch, hub=Hub(repo="a/b"))
    with pytest.raises(SolverBenchError, match=r"pip install 'solverbench\[hub\]'"):
        weights.fetch(NAME)


def test_verification_finds_one_flipped_bit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url)
    path = weights.fetch(NAME)
    assert run("weights", "verify").exit_code == 0
    data = bytearray(DATA)
    data[1_234_567] ^= 1
    path.write_bytes(data)
    done = run("weights", "verify", NAME)
    assert done.exit_code == 1
    assert f"{SHA256}" in done.stdout
    assert f"solverbench weights fetch --force {NAME}" in done.stderr
    assert run("weights", "fetch", "--force", NAME).exit_code == 0
    assert run("weights", "verify", NAME).exit_code == 0


def test_a_file_copied_by_hand_is_recorded_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, manual="ask a friend")
    path = weights.path(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert [weights.verify(NAME).state for _ in range(2)] == ["recorded", "ok"]
    path.write_bytes(DATA[1:])
    assert weights.verify(NAME).state == "damaged"


def test_a_file_copied_by_hand_is_compared_with_the_catalogue() -> None:
    path = weights.path("vgg16")
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert weights.verify("vgg16").state == "damaged"
    assert not path.with_name(f"{path.name}.json").exists()

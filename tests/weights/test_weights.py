"""The catalogue, and transfers from a server on this machine."""

import json
import re
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from solverbench import registry, transfer, weights
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.weights_catalogue import Hub
from tests.weights.serving import DATA, NAME, SHA256, Handler, Server, leftovers, listed, run


def test_names_and_places_are_unique_and_every_address_is_https() -> None:
    entries = re.findall(r"^- name: (.*)$", Path(weights_file()).read_text(), re.M)
    items = weights.catalogue().values()
    assert len(entries) == len(set(entries)) == len(items)
    assert len({item.file for item in items}) == len(items)
    assert all(item.url.startswith("https://") for item in items if item.url)
    assert all(item.about and item.licence for item in items)


def weights_file() -> Path:
    return Path(weights.__file__).with_name("weights_catalogue.yaml")


def test_every_file_that_a_backbone_needs_is_in_the_catalogue() -> None:
    kinds = [kind for _, kind in registry.backbones.items()]
    named = [n for k in kinds for n in (*getattr(k, "needs", ()), *getattr(k, "measured_by", ()))]
    assert {"edm-cifar10-32x32-uncond-vp", "ldm-cin256-v2", "sd-v1-5"} <= set(named)
    assert set(named) <= set(weights.catalogue())


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://example.org/x"},
        {"file": "../x"},
        {"file": "/x"},
        {"hub": Hub(repo="a/b")},
        {"sha256": "123"},
        {"bytes": 3},
    ],
)
def test_an_entry_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    item = weights.item_of("edm-cifar10-32x32-uncond-vp")
    with pytest.raises(ValueError, match="validation error"):
        weights.Item.model_validate(item.model_dump() | change)


@pytest.mark.parametrize(
    ("platform", "env", "wanted"),
    [
        ("linux", {"SOLVERBENCH_WEIGHTS": "/w"}, "/w"),
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/solverbench/weights"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/solverbench/weights"),
        ("linux", {}, "/home/me/.cache/solverbench/weights"),
        ("darwin", {}, "/home/me/Library/Caches/solverbench/weights"),
        ("win32", {}, "/home/me/AppData/Local/solverbench/weights"),
    ],
)
def test_files_live_in_a_folder_of_the_user(
    platform: str, env: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("SOLVERBENCH_WEIGHTS", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert weights.folder() == Path(wanted)


def test_all_missing_files_are_named_at_once() -> None:
    with pytest.raises(MissingWeightsError, match=r"fetch sd-v1-5 vgg16$") as caught:
        weights.require("sd-v1-5", "vgg16")
    assert caught.value.names == ("sd-v1-5", "vgg16")


def test_a_file_arrives_with_a_record(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, url=server.url, size=len(DATA), sha256=SHA256)
    seen: list[tuple[int, int | None]] = []
    path = weights.fetch(NAME, lambda *told: seen.append(told))
    assert path.read_bytes() == DATA
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    record = json.loads(path.with_name("file.bin.json").read_text())
    assert (record["size"], record["sha256"], record["revision"]) == (len(DATA), SHA256, '"one"')
    assert leftovers(path.parent) == []
    weights.fetch(NAME)
    assert len(server.seen) == 1  # what is here is not fetched again


def test_a_cut_connection_is_continued(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cuts in one call: each request asks for what is not here yet, of the same version."""
    listed(monkeypatch, url=server.url, sha256=SHA256)
    server.cuts = [1_000_000, 500_000]
    assert weights.fetch(NAME).read_bytes() == DATA
    asked = [(h.get("Range"), h.get("If-Range")) for h in server.seen]
    assert asked == [
        (None, None),
        ("bytes=999999-", '"one"'),  # the last byte again: a range is never empty
        ("bytes=1499998-", '"one"'),
    ]


def test_what_an_earlier_call_left_is_continued(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url, sha256=SHA256)
    server.cuts = [1_000_000, *[1] * 5]  # a byte each: the one that is asked for again
    with pytest.raises(SolverBenchError, match=r"connection ended at byte .*the same command"):
        weights.fetch(NAME)
    assert not weights.present(NAME)
    server.cuts = []
    assert weights.fetch(NAME).read_bytes() == DATA
    assert server.seen[-1].get("Range") == "bytes=999999-"


def test_a_whole_part_is_finished_with_one_byte(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """As after a kill between the last byte and the new name."""
    listed(monkeypatch, url=server.url, sha256=SHA256)
    part = place / "a" / ".file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    part.with_name(".file.bin.part.json").write_text(
        json.dumps({"url": server.url, "mark": '"one"'})
    )
    assert weights.fetch(NAME).read_bytes() == DATA
    assert [h.get("Range") for h in server.seen] == [f"bytes={len(DATA) - 1}-"]


def test_a_server_that_ignores_ranges_starts_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url, sha256=SHA256)
    server.cuts, server.ranges = [2_000_000], False
    assert weights.fetch(NAME).read_bytes() == DATA
    assert len(server.seen) == 2


@pytest.mark.parametrize("obeys", [True, False])
def test_a_file_that_changed_between_two_parts_is_fetched_whole(
    obeys: bool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server does not look at If-Range and sends the end of the new file."""
    listed(monkeypatch, url=server.url)
    server.cuts = [1_000_000, *[1] * 5]
    with pytest.raises(SolverBenchError):
        weights.fetch(NAME)
    server.cuts, server.data, server.tag = [], DATA[::-1], '"two"'
    if not obeys:
        monkeypatch.setattr(
            Handler, "start", lambda self: int((self.headers.get("Range") or "=0-")[6:-1] or 0)
        )
    assert weights.fetch(NAME).read_bytes() == DATA[::-1]


def test_without_a_version_nothing_is_continued(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url)
    server.tag, server.cuts = "", [1_000_000]
    assert weights.fetch(NAME).read_bytes() == DATA
    assert [h.get("Range") for h in server.seen] == [None, None]


def test_another_size_is_refused_before_the_first_byte(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    listed(monkeypatch, url=server.url, size=len(DATA) + 1)
    with pytest.raises(SolverBenchError, match="has 3,072,000 bytes, not 3,072,001"):
        weights.fetch(NAME)
    assert leftovers(place) == []


def test_another_checksum_is_refused_and_nothing_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    listed(monkeypatch, url=server.url, sha256="0" * 64)
    with pytest.raises(SolverBenchError, match=f"{SHA256}, not 0000"):
        weights.fetch(NAME)
    assert not weights.present(NAME)
    assert leftovers(place) == []


def test_the_first_checksum_binds_later_fetches(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url)
    path = weights.fetch(NAME)
    server.data, server.tag = DATA[:-1] + b"!", '"two"'
    with pytest.raises(SolverBenchError, match=f"{SHA256} was recorded before"):
        weights.fetch(NAME, force=True)
    assert path.read_bytes() == DATA  # the old one stands


def test_a_busy_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, url=server.url)
    server.faults = [503, 429]
    assert weights.fetch(NAME).read_bytes() == DATA


def test_an_absent_file_is_one_line_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url)
    server.faults = [404]
    with pytest.raises(SolverBenchError, match="answers 404 Not Found"):
        weights.fetch(NAME)
    assert len(server.seen) == 1


def test_nobody_is_led_from_https_to_http(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, url=server.url)
    server.redirect = "http://example.org/file.bin"
    with pytest.raises(SolverBenchError, match="over https only"):
        weights.fetch(NAME)
    with pytest.raises(SolverBenchError, match="over https only"):
        transfer.check_address("ftp://127.0.0.1/x")


def test_a_full_disk_is_told_before_the_first_byte(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    listed(monkeypatch, url=server.url)
    free = types.SimpleNamespace(free=1_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(SolverBenchError, match="GB free and"):
        weights.fetch(NAME)
    assert leftovers(place) == []


@pytest.mark.parametrize("key", weights.OFFLINE)
def test_offline_no_socket_is_opened(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket")

    monkeypatch.setenv(key, "1")
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    for name in ("vgg16", "sd-v1-5", "gas-students"):
        done = run("weights", "fetch", name)
        assert done.exit_code == 3
        assert len(done.stderr.splitlines()) == 1
        assert f"{name} is not fetched" in done.stderr


def test_two_fetches_of_one_file_at_a_time_make_one_transfer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, url=server.url, sha256=SHA256)
    threads = [threading.Thread(target=weights.fetch, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert weights.path(NAME).read_bytes() == DATA
    assert len(server.seen) == 1

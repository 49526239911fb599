"""One file over HTTP: continued where it was cut, hashed on the way; a leaf."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from solverbench.errors import SolverBenchError
from solverbench.files import write_text

Listener = Callable[[int, int | None], None]  # bytes that are here, bytes of the whole
ATTEMPTS = 5  # without a byte gained
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 60.0  # seconds without an answer
BLOCK = 1 << 20
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that may differ a moment later
HOPELESS = (ssl.SSLCertVerificationError, socket.gaierror)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Got(NamedTuple):
    """A whole file.

    Attributes:
        size: bytes.
        sha256: hexadecimal.
        mark: the server's name of this version (ETag or date); may be empty.
    """

    size: int
    sha256: str
    mark: str


class _AgainError(OSError):
    """An attempt that failed and may be repeated."""


def download(url: str, part: Path, listen: Listener, size: int | None = None) -> Got:
    """Fetch a file into ``part``, continuing what an earlier call left there.

    Args:
        url: https; http on the loopback interface only.
        part: where; ``<part>.json`` beside it says which version it is a part of.
        listen: told of progress.
        size: bytes that the whole must have.

    Raises:
        SolverBenchError: where the server is out of reach or refuses, the size is another, or the
            disk is full. What has arrived stays, and the next call continues it.
    """
    check_address(url)
    failures, best = 0, -1
    while True:
        try:
            return _attempt(url, part, listen, size)
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(url, error)
            here = part.stat().st_size if part.exists() else 0
            failures, best = (1, here) if here > best else (failures + 1, best)
            if failures >= ATTEMPTS:
                raise SolverBenchError(
                    f"{url}: {reason}. Tried {ATTEMPTS} times; the same command continues"
                ) from error
            time.sleep(PAUSE * 2 ** (failures - 1))


def check_address(url: str) -> None:
    """Refuse what is neither https nor http on the loopback interface.

    Raises:
        SolverBenchError: for any other address.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise SolverBenchError(f"{url}: files are fetched over https only")


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        SolverBenchError: where fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise SolverBenchError(
            f"{folder} has {free / 1e9:.1f} GB free and {num_bytes / 1e9:.1f} GB are needed; free "
            "space, or name another folder in SOLVERBENCH_WEIGHTS"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; other processes wait. It falls with the process that holds it."""
    with path.open("ab") as file:
        _lock(file.fileno())
        yield


def _lock(number: int) -> None:
    if os.name == "nt":
        import msvcrt

        lock: Any = msvcrt  # names that exist on Windows only
        while True:
            with contextlib.suppress(OSError):  # raised after ten seconds in the queue
                lock.locking(number, lock.LK_LOCK, 1)
                return
    import fcntl

    fcntl.flock(number, fcntl.LOCK_EX)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to https only."""

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        check_address(args[-1])
        return super().redirect_request(*args)


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    handlers: list[Any] = [_Redirects()]
    if urlsplit(url).hostname in LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"User-Agent": "solverbench"} | headers)
    answer: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(
        request, timeout=TIMEOUT
    )
    return answer


def _reason(url: str, error: Exception) -> str:
    """Why an attempt failed, where another one may help.

    Raises:
        SolverBenchError: where none does.
    """
    if isinstance(error, urllib.error.HTTPError):
        said = f"the server answers {error.code} {error.reason}"
        error.close()
        if error.code not in BUSY:
            raise SolverBenchError(f"{url}: {said}") from error
        return said
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, HOPELESS):
        raise SolverBenchError(f"{url} is out of reach: {cause}") from error
    return str(cause) or type(cause).__name__


def _attempt(url: str, part: Path, listen: Listener, size: int | None) -> Got:
    start, mark = _begun(part, url)
    asked = {"Range": f"bytes={start}-", "If-Range": mark} if start else {}
    try:
        answer = _open(url, asked)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)
        raise _AgainError("the part that is here fits no longer") from error
    with answer:
        if answer.status == 206:
            _check_part(answer, part, start, mark)
        else:
            start = 0
        total = _total(url, answer, start, size)
        if total is not None:
            check_space(part.parent, total - start)
        if not start:
            mark = _begin(part, url, answer)
        return Got(*_receive(answer, part, (start, total), listen), mark)


def _begun(part: Path, url: str) -> tuple[int, str]:
    """Bytes to keep and the version they are of; the last byte is asked for again.

    So a request is never empty, which servers refuse.
    """
    try:
        noted = json.loads(_note(part).read_text())
        kept, mark = part.stat().st_size - 1, noted["mark"]
    except (OSError, ValueError, KeyError):
        return 0, ""
    return (kept, mark) if kept > 0 and mark and noted.get("url") == url else (0, "")


def _begin(part: Path, url: str, answer: http.client.HTTPResponse) -> str:
    """Start anew: empty the part, then note which version follows."""
    mark = _mark(answer)
    part.write_bytes(b"")
    write_text(_note(part), json.dumps({"url": url, "mark": mark}))
    return mark


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def forget(part: Path) -> None:
    """Remove a part and its note."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _mark(answer: http.client.HTTPResponse) -> str:
    """A strong ETag, else the date of the version."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_part(answer: http.client.HTTPResponse, part: Path, start: int, mark: str) -> None:
    """Refuse an answer that does not continue the part."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start or _mark(answer) not in ("", mark):
        forget(part)
        raise _AgainError("the file has changed on the server")


def _total(url: str, answer: http.client.HTTPResponse, start: int, size: int | None) -> int | None:
    """Bytes of the whole file; None where only the stream itself tells.

    Raises:
        SolverBenchError: for another size than wanted, or where a cut could not be noticed.
    """
    total = size if answer.length is None else start + answer.length
    if total is None and not answer.chunked:
        raise SolverBenchError(f"{url}: the server does not say how long the file is")
    if size is not None and total != size:
        raise SolverBenchError(f"{url} has {total:,} bytes, not {size:,}: it is another file")
    return total


def _receive(
    answer: http.client.HTTPResponse,
    part: Path,
    span: tuple[int, int | None],
    listen: Listener,
) -> tuple[int, str]:
    """Append the answer from the first byte of ``span`` on; size and SHA-256 of the whole."""
    (done, total), digest = span, hashlib.sha256()
    with part.open("r+b") as file:
        left = done
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
        file.truncate(done)
        listen(done, total)
        while block := answer.read(BLOCK):
            _write(file, block)
            digest.update(block)
            done += len(block)
            listen(done, total)
            if total is not None and done > total:
                raise SolverBenchError(f"the server sends more than {total:,} bytes")
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        raise _AgainError(f"the connection ended at byte {done:,} of {total:,}")
    return done, digest.hexdigest()


def _write(file: Any, block: bytes) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise SolverBenchError(f"cannot write {file.name}: {error.strerror}") from error

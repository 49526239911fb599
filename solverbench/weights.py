"""Published files: where they belong, how they get there and whether they are whole; a leaf.

Which there are is data: ``weights_catalogue.yaml``. Quick to import.
"""

import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.files import sha256_of, write_text
from solverbench.transfer import Listener, check_space, download, forget, locked
from solverbench.weights_catalogue import Data
from solverbench.weights_catalogue import Item as Item
from solverbench.weights_catalogue import catalogue as catalogue
from solverbench.weights_catalogue import item_of as item_of

FOLDER = "SOLVERBENCH_WEIGHTS"
OFFLINE = ("SOLVERBENCH_OFFLINE", "HF_HUB_OFFLINE")


class Record(Data):
    """What was fetched, or found at the first verification; beside the file as ``<file>.json``.

    Attributes:
        origin: where it came from.
        size: bytes.
        sha256: of the file; of the sorted list of ``files`` for a folder.
        date: UTC.
        revision: the version that the server named.
        files: SHA-256 of each file of a folder.
    """

    origin: str
    size: int
    sha256: str
    date: str
    revision: str = ""
    files: dict[str, str] = Field(default_factory=dict)


class Verdict(NamedTuple):
    """How a file is.

    Attributes:
        name: of the file.
        state: ``recorded`` means that its checksum was not known before and is from now on.
        detail: one line.
    """

    name: str
    state: Literal["ok", "recorded", "damaged", "missing"]
    detail: str


def folder() -> Path:
    """The user's folder of published files: ``SOLVERBENCH_WEIGHTS``, else one in the user's cache.

    Raises:
        SolverBenchError: where the user has no home folder and none is named.
    """
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser().absolute()
    if (cache_home := os.environ.get("XDG_CACHE_HOME")) and Path(cache_home).is_absolute():
        return Path(cache_home) / "solverbench" / "weights"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise SolverBenchError(f"there is no home folder; name a folder in {FOLDER}") from error
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "solverbench" / "weights"


def path(name: str) -> Path:
    """Where a file belongs, whether it is there or not."""
    return folder() / item_of(name).file


def present(name: str) -> bool:
    """Whether something is there; ``verify`` says whether it is whole."""
    return path(name).exists()


def require(*names: str) -> list[Path]:
    """The places of files that must be there.

    Raises:
        MissingWeightsError: names all that are not.
    """
    missing = [name for name in names if not present(name)]
    if missing:
        raise MissingWeightsError(missing)
    return [path(name) for name in names]


def offline() -> bool:
    """Whether the user forbids connections."""
    return any(os.environ.get(key, "").lower() in ("1", "true", "yes", "on") for key in OFFLINE)


def fetch(name: str, listen: Listener = lambda here, total: None, *, force: bool = False) -> Path:
    """Fetch a file unless it is there.

    Two processes that fetch the same file wait for each other. Size and checksum are those of the
    catalogue, else those of the first fetch.

    Args:
        name: of the file.
        listen: told of progress: bytes that are here, bytes of the whole or None.
        force: fetch it again.

    Raises:
        MissingWeightsError: offline.
        SolverBenchError: where it cannot be fetched or is another file than recorded.
    """
    item, target = item_of(name), path(name)
    if present(name) and not force:
        return target
    if item.manual:
        raise SolverBenchError(f"{name} cannot be fetched: {item.manual}. It belongs at {target}")
    if offline():
        forbids = f"{name} is not fetched: {' or '.join(OFFLINE)} forbids connections"
        raise MissingWeightsError([name], f"{forbids}. Copy it from {item.origin} to {target}")
    with _workplace(target):
        if force or not present(name):  # another process may have been quicker
            record = _from_hub(item, target) if item.hub else _from_url(item, target, listen)
            write_text(_record_path(target), record.model_dump_json(indent=1))
    return target


def verify(name: str) -> Verdict:
    """Compare a file with the catalogue and with what was recorded when it came.

    A file without a record, copied by hand, gets one.
    """
    item, target = item_of(name), path(name)
    if not target.exists():
        return Verdict(name, "missing", f"belongs at {target}")
    known = _record_of(target)
    found = _recorded(target, item.origin)
    if known is None:
        if fault := _fault(item, found):
            return Verdict(name, "damaged", f"{target}: {fault}")
        write_text(_record_path(target), found.model_dump_json(indent=1))
        return Verdict(name, "recorded", f"SHA-256 {found.sha256}, not known before")
    changed = [k for k, v in known.files.items() if found.files.get(k) != v]
    if changed:
        return Verdict(name, "damaged", f"{target}: {', '.join(changed)} missing or changed")
    same = known.files or (found.sha256 == known.sha256)
    fault = _fault(item, found) if same else f"SHA-256 {found.sha256}, not {known.sha256}"
    return Verdict(name, "damaged" if fault else "ok", fault or f"SHA-256 {found.sha256}")


@contextmanager
def _workplace(target: Path) -> Iterator[None]:
    """The folder of a file, made, and its lock."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            yield
    except OSError as error:
        raise SolverBenchError(
            f"cannot write in {target.parent}: {error.strerror}; name another folder in {FOLDER}"
        ) from error


def _from_url(item: Item, target: Path, listen: Listener) -> Record:
    assert item.url
    part = target.with_name(f".{target.name}.part")
    got = download(item.url, part, listen, None if item.member else item.size)
    source, size, sha256 = part, got.size, got.sha256
    if item.member:
        source = target.with_name(f".{target.name}.member")
        size, sha256 = _extract(item.url, item.member, part, source)
    record = _new(item.origin, size, sha256, got.mark)
    fault = _fault(item, record, _record_of(target))
    if fault:
        forget(part)
        source.unlink(missing_ok=True)
        raise SolverBenchError(f"{item.url}: {fault}. It was not kept")
    os.replace(source, target)
    forget(part)
    return record


def _extract(url: str, member: str, archive: Path, aside: Path) -> tuple[int, str]:
    """One file of a zip archive, by its bare name; no name of the archive is ever written to.

    Raises:
        SolverBenchError: for a damaged archive, one with names that leave it, or without the file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [PurePosixPath(n.replace("\\", "/")) for n in opened.namelist()]
            if any(
                n.is_absolute() or ".." in n.parts or ":" in n.parts[0] for n in names if n.parts
            ):
                forget(archive)
                raise SolverBenchError(f"{url} holds names that leave it; it was not kept")
            fits = [
                i for i in opened.infolist() if not i.is_dir() and Path(i.filename).name == member
            ]
            if len(fits) != 1:
                raise zipfile.BadZipFile(f"it holds {len(fits)} files named {member}")
            check_space(aside.parent, fits[0].file_size)
            with opened.open(fits[0]) as source, aside.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        forget(archive)
        raise SolverBenchError(f"{url} is refused: {error}. It was not kept") from error
    return aside.stat().st_size, sha256_of(aside)


def _from_hub(item: Item, target: Path) -> Record:
    """By the hub's own client, into a folder aside, which it also continues."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise SolverBenchError(
            f"{item.name} is on the Hugging Face hub: pip install 'solverbench[hub]'"
        ) from error
    assert item.hub
    hub, aside, known = item.hub, target.with_name(f".{target.name}.part"), _record_of(target)
    check_space(target.parent, item.size or item.roughly or 0)
    try:
        info = huggingface_hub.HfApi().repo_info
        revision = known.revision if known else str(info(hub.repo, repo_type=hub.type).sha)
        huggingface_hub.snapshot_download(
            hub.repo,
            repo_type=hub.type,
            revision=revision,
            local_dir=aside,
            allow_patterns=[hub.file] if hub.file else list(hub.patterns) or None,
        )
    except Exception as error:  # the client's errors have no base of their own
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise SolverBenchError(f"{item.origin}: {what}") from error
    wanted = [hub.file] if hub.file else [p for p in hub.patterns if "*" not in p]
    if missing := [file for file in wanted if not (aside / file).is_file()]:
        raise SolverBenchError(f"{item.origin} has no {', '.join(missing)}")
    source = aside / hub.file if hub.file else aside
    shutil.rmtree(aside / ".cache", ignore_errors=True)
    record = _recorded(source, item.origin, revision)
    if fault := _fault(item, record, known):
        shutil.rmtree(aside)
        raise SolverBenchError(f"{item.origin}: {fault}. It was not kept")
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)
    shutil.rmtree(aside, ignore_errors=True)
    return record


def _fault(item: Item, found: Record, known: Record | None = None) -> str:
    """How a file differs from the catalogue, or from one that was here; empty if it does not."""
    if item.size is not None and found.size != item.size:
        return f"it has {found.size:,} bytes, not {item.size:,}"
    if item.sha256 and not found.sha256.startswith(item.sha256):
        return f"its SHA-256 is {found.sha256}, not {item.sha256}"
    if known and found.sha256 != known.sha256:
        return (
            f"its SHA-256 is {found.sha256}, and {known.sha256} was recorded before; delete "
            f"{Path(item.file).name}.json to accept the new one"
        )
    return ""


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _record_of(target: Path) -> Record | None:
    try:
        return Record.model_validate_json(_record_path(target).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise SolverBenchError(f"{_record_path(target)} cannot be read; delete it") from error


def _recorded(target: Path, origin: str, revision: str = "") -> Record:
    """The record of what is at a place."""
    if target.is_file():
        return _new(origin, target.stat().st_size, sha256_of(target), revision)
    inside = [p for p in sorted(target.rglob("*")) if p.is_file()]
    files = {p.relative_to(target).as_posix(): sha256_of(p) for p in inside}
    whole = hashlib.sha256("".join(f"{v}  {k}\n" for k, v in files.items()).encode()).hexdigest()
    size = sum(p.stat().st_size for p in inside)
    return _new(origin, size, whole, revision).model_copy(update={"files": files})


def _new(origin: str, size: int, sha256: str, revision: str) -> Record:
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(origin=origin, size=size, sha256=sha256, date=date, revision=revision)

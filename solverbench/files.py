"""Writing files so that a reader never sees half of one. No torch here."""

import contextlib
import hashlib
import os
from pathlib import Path

from solverbench.errors import SolverBenchError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Args:
        path: where; missing folders are made.
        data: the whole content.

    Raises:
        SolverBenchError: if the folder cannot be made or the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise SolverBenchError(
            f"cannot write {path}: {error.strerror}. Free space, mend its folder or name another"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; left over after a fault
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def sha256_of(path: Path | None) -> str:
    """The checksum of a file, hexadecimal; empty where there is none."""
    if not path or not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

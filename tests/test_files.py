"""Files are written aside and renamed; what a killed process left is removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solverbench.errors import shown
from solverbench.files import HOST, sha256_of, write_bytes

KILLED = """
import os, signal, sys
from pathlib import Path
from solverbench import files

def kill(one, other):
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = kill
files.write_bytes(Path(sys.argv[1]), b"half")
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere asking for a process could end it")
def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a[1].bin"
    write_bytes(path, b"old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"old"
    others = [
        tmp_path / f".a[1].bin.{HOST}.{os.getppid()}.tmp",  # a process that lives
        tmp_path / ".a[1].bin.00000000.999999999.tmp",  # of another machine
        tmp_path / f".b.bin.{HOST}.999999999.tmp",  # of another file
    ]
    for other in others:
        other.write_bytes(b"")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert set(tmp_path.iterdir()) == {path, *others}


def test_checksums_are_those_of_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf")
    assert sha256_of(tmp_path / "none") == sha256_of(None) == ""


def test_foreign_text_is_escaped_and_cut() -> None:
    assert shown("é ok") == "é ok"
    assert shown("\x1b[1m\n\ud800\u202e") == "\\x1b[1m\\n\\ud800\\u202e"
    assert shown("x" * 300) == "x" * 200 + "..."

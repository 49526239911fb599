"""Opening files: 500 MB take memory of about that size; safetensors of any origin are read."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from solverbench import tensorfile
from solverbench.backbones import edm_files
from solverbench.backbones.edm_preconditioning import build
from solverbench.discriminator import R3GANDiscriminator
from solverbench.errors import SolverBenchError
from tests.backbones.emit import edm_tree, emit, r3gan_tree

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # begins the stream of a storage
SIZE = 500_000_000
CODES = {torch.float32: "F32", torch.float16: "F16"}
KEYWORDS = {
    "img_resolution": 4,
    "img_channels": 1,
    "model_type": "DhariwalUNet",
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
WIDTHS = {torch.float32: 832, torch.float16: 1216}  # channels of an EDM network of about SIZE
OPENING = """
import os, sys
from pathlib import Path
import torch
from solverbench import tensorfile
from solverbench.backbones.edm_files import load_network
from solverbench.published_discriminator import load_file

OPEN = {
    "checked": lambda path: tensorfile.read(path, "solverbench-test-1"),
    "plain": tensorfile.read_plain,
    "network": load_network,
    "discriminator": load_file,
}

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def peak(kind, path):
    if (child := os.fork()) == 0:  # a new process: its peak begins at what is resident now
        before = resident("VmRSS")
        kept = OPEN[kind](path)
        print(kind, path.name, resident("VmHWM") - before, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{path} cannot be opened")

pairs = [argument.partition("=")[::2] for argument in sys.argv[1:]]
for kind, path in pairs:
    if "small" in path:
        OPEN[kind](Path(path))  # what is made once is made before
for kind, path in pairs:
    peak(kind, Path(path))
"""


def sparse(path: Path, pickled: bytes, itemsize: int) -> None:
    """Write a pickle of tensors without numbers, and zeros where the numbers belong, as holes."""
    at = 0
    with path.open("wb") as file:
        while (start := pickled.find(MAGIC, at)) >= 0:
            (size,) = struct.unpack("<I", pickled[start - 4 : start])
            numel = struct.unpack("<q", pickled[start + size - 8 : start + size])[0]
            file.write(pickled[at : start - 4] + struct.pack("<I", size + itemsize * numel))
            file.write(pickled[start : start + size])
            file.seek(itemsize * numel, os.SEEK_CUR)
            at = start + size
        file.write(pickled[at:])


def zeros(path: Path, tensors: dict[str, Any], form: str, facts: str) -> None:
    """Write safetensors of zeros, as a hole, checked as the package does it."""
    head, end, digest, block = {}, 0, hashlib.sha256(facts.encode()), bytes(1 << 20)
    for key in sorted(tensors):
        value = tensors[key]
        size = value.numel() * value.dtype.itemsize
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        for _ in range(size >> 20):
            digest.update(block)
        digest.update(bytes(size % (1 << 20)))
        place = {"dtype": CODES[value.dtype], "shape": list(value.shape)}
        head[key] = place | {"data_offsets": [end, end + size]}
        end += size
    said = {"format": form, "facts": facts, "sha256": digest.hexdigest()}
    text = json.dumps({"__metadata__": said} | head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def files(folder: Path, name: str, num: int, width: dict[torch.dtype, int]) -> list[str]:
    """A file of each kind, as ``kind=path``."""
    plain = {f"t{i}": torch.empty(num // 20, device="meta") for i in range(5)}
    zeros(folder / f"{name}-plain.safetensors", plain, "solverbench-test-1", "{}")
    made = [f"{kind}={folder / f'{name}-plain.safetensors'}" for kind in ("checked", "plain")]
    for dtype, channels in width.items():
        given = KEYWORDS | {"model_channels": channels}
        network, path = build("EDMPrecond", given).to(dtype), folder / f"{name}-{CODES[dtype]}.pkl"
        sparse(path, emit(edm_tree(network, given)), dtype.itemsize)
        made.append(f"network={path}")
    facts = edm_files.Facts("EDMPrecond", given, 0.0, None, "float16", "", "")
    path, text = path.with_suffix(".safetensors"), json.dumps(facts._asdict())
    zeros(path, network.state_dict(), edm_files.FORMAT, text)
    made.append(f"network={path}")
    with torch.device("meta"):
        wide = R3GANDiscriminator((width[torch.float16] + 64,) * 2, (1, 1), (1, 1), 3)
    sparse(folder / f"{name}-r3gan.pkl", emit(r3gan_tree(wide)), 4)
    return [*made, f"discriminator={folder / f'{name}-r3gan.pkl'}"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of the peak is Linux's")
def test_opening_takes_less_than_a_fifth_more_than_the_file(tmp_path: Path) -> None:
    """Networks in half precision become float32: of those, a fifth more than twice the file."""
    small = files(tmp_path, "small", 1000, dict.fromkeys(WIDTHS, 8))
    large = files(tmp_path, "large", SIZE, WIDTHS)
    done = subprocess.run(
        [sys.executable, "-c", OPENING, *small, *large],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(small) + len(large)
    peaks = {(kind, name): int(peak) for kind, name, peak in rows}
    for argument in large:
        kind, _, path = argument.partition("=")
        size, name = Path(path).stat().st_size, Path(path).name
        baseline = peaks[kind, name.replace("large", "small")]
        grown = 2 if "F16" in name and kind == "network" else 1
        assert size > 0.9 * SIZE, (name, size)
        assert peaks[kind, name] - baseline < 1.2 * grown * size, (kind, name)


def test_any_safetensors_come_back_as_they_were(tmp_path: Path) -> None:
    """Also of other projects: all types, no numbers at all, one number, texts in the header."""
    path = tmp_path / "foreign.safetensors"
    made = {str(t): torch.arange(6).reshape(2, 3).to(t) for t in tensorfile.TYPES.values()}
    made |= {"none": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    save_file(made, path, {"by": "another"})
    found, head = tensorfile.read_plain(path)
    assert head == {"by": "another"}
    assert found.keys() == made.keys()
    for key, value in made.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    tensorfile.write(path, "test-1", found, {"a": 1})
    again, facts = tensorfile.read(path, "test-1")
    assert facts == {"a": 1}
    assert all(torch.equal(again[key], value) for key, value in made.items())


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("[]", "no safetensors header"),
        ("{", "no safetensors header"),
        ('{"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}', "type F9; known are"),
        ('{"a": {"dtype": [1], "shape": [2], "data_offsets": [0, 8]}}', "known are BF16"),
        ('{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": "2", "data_offsets": "08"}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [1e1], "data_offsets": [0, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [false, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [2199023255552], "data_offsets": [0, 8]}}', "impossible"),
        ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "one after another"),
        ('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "no safetensors"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "one after another"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "too early or too late"),
        ('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "too early or too late"),
    ],
)
def test_headers_that_do_not_fit_are_refused(head: str, why: str, tmp_path: Path) -> None:
    """Eight bytes of numbers follow each; nothing is read before the header fits."""
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head.encode() + bytes(8))
    with pytest.raises(SolverBenchError, match=rf"foreign\.safetensors: .*{why}"):
        tensorfile.read_plain(path)


def test_headers_too_large_are_refused_at_once(tmp_path: Path) -> None:
    path, empty = (
        tmp_path / "foreign.safetensors",
        '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
    )
    many = "{" + ",".join(f'"{i}":{empty}' for i in range(100_001)) + "}"
    for head, why in ((many, "more than 100,000 tensors"), (" " * (9 << 20) + "{}", "no safetens")):
        path.write_bytes(struct.pack("<Q", len(head)) + head.encode())
        with pytest.raises(SolverBenchError, match=why):
            tensorfile.read_plain(path)


@pytest.mark.parametrize("facts", ["[1]", '"a"', "null", "{", "[" * 9999, "9" * 5000, '"\\ud800"'])
def test_facts_that_are_no_object_are_refused(facts: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / "d.safetensors", {"a": torch.zeros(2)}
    head = {"format": "test-1", "facts": facts, "sha256": tensorfile._digest(tensors, facts)}
    save_file(tensors, path, head)
    with pytest.raises(SolverBenchError, match=r"d\.safetensors: .*no JSON object"):
        tensorfile.read(path, "test-1")


@pytest.mark.parametrize("data", [b"", b"1234", b"\xff" * 8, struct.pack("<Q", 1 << 40) + b"{}"])
def test_what_is_no_safetensors_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(data)
    with pytest.raises(SolverBenchError, match="no safetensors file, or it is cut"):
        tensorfile.read_plain(path)

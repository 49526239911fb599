"""Checked safetensors: a format name, JSON facts and a checksum in the header of every file.

Files are read a tensor at a time, each into memory of its own, so that opening one takes its size;
``examine`` keeps nothing and says where the tensors lie, to be mapped when they are used.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from solverbench.errors import SolverBenchError, shown
from solverbench.files import write_bytes
from solverbench.sources import Source, expect_file, open_source, unfit
from solverbench.torchfile import Storage, Stored

HEADER, MOST = 1 << 23, 100_000  # bytes of a header, and tensors in it, at most
DIMENSIONS, LONGEST = 64, 1 << 40  # of a tensor
PIECE = 1 << 20  # bytes of a file that are hashed at once
TYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def write(path: Path, form: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """Write tensors with facts and a checksum, aside first and then renamed.

    Args:
        path: where.
        form: name and version of the layout, for example ``solverbench-tableau-1``.
        tensors: any.
        facts: JSON values.

    Returns:
        The checksum: equal for equal content, which the bytes of two files need not be.
    """
    host = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(facts)
    digest = _digest(host, text)
    write_bytes(path, save(host, {"format": form, "facts": text, "sha256": digest}))
    return digest


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file that was found undamaged; nothing of it is in memory.

    Attributes:
        path: of the file.
        mark: device, number, bytes and time of change of the file as it was examined.
        start: first byte.
        shape: as usual.
        dtype: of each number.
    """

    path: Path
    mark: tuple[int, ...]
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def mapped(self) -> Tensor:
        """The tensor in a memory map, which goes with the last view of it; for reading.

        Raises:
            SolverBenchError: where the file is gone, or another one since.
        """
        try:
            with self.path.open("rb") as file:
                if _mark(file.fileno()) != self.mark:
                    raise SolverBenchError(f"{self.path} was changed while in use; run again")
                held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            why = error.strerror or error
            raise SolverBenchError(f"{self.path} cannot be read any more: {why}") from error
        count = math.prod(self.shape)
        flat = torch.frombuffer(held, dtype=self.dtype, count=count, offset=self.start)
        return flat.view(self.shape)


def read(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote.

    Returns:
        Tensors and facts.

    Raises:
        SolverBenchError: for a missing, torn or foreign file, one of another version, or one whose
            checksum does not fit; one line that names the file.
    """
    with _opened(path, form) as (_, stored, head):
        tensors = {key: value.read() for key, value in stored.items()}
    return tensors, _checked(path, head, tensors)


def examine(path: Path, form: str) -> tuple[dict[str, Place], dict[str, Any]]:
    """Check what ``write`` wrote as ``read`` does, a piece at a time.

    Returns:
        Where its tensors lie, and facts.

    Raises:
        SolverBenchError: as ``read``.
    """
    with _opened(path, form) as (source, stored, head):
        mark = _mark(source.file.fileno())
        facts = _checked(path, head, stored)
    return {
        key: Place(path, mark, value.storage.start, value.shape, value.storage.dtype)
        for key, value in stored.items()
    }, facts


@contextmanager
def _opened(path: Path, form: str) -> Iterator[tuple[Source, dict[str, Stored], dict[str, str]]]:
    """A file of ours, opened once: one that is replaced meanwhile is old or new as a whole."""
    expect_file(path, f"a {form} file")
    try:
        with path.open("rb") as file:
            source = Source(file)
            try:
                stored, head = inspect(source)
            except SolverBenchError as error:
                raise _unreadable(path, form, error) from error
            _check_form(path, form, head.get("format"), head)
            yield source, stored, head
    except OSError as error:
        raise _unreadable(path, form, error) from error


def _unreadable(path: Path, form: str, error: Exception) -> SolverBenchError:
    return SolverBenchError(f"{path} cannot be read as {form}: {error}")


def _check_form(path: Path, form: str, found: str | None, head: dict[str, str]) -> None:
    if (
        found is None
        or not {"facts", "sha256"} <= set(head)
        or not found.startswith(form.rpartition("-")[0])
    ):
        raise SolverBenchError(f"{path} is no {form} file of solverbench")
    if found != form:
        raise SolverBenchError(f"{path} has layout {shown(found)}; this solverbench reads {form}")


def _checked(
    path: Path, head: dict[str, str], tensors: Mapping[str, Tensor | Stored]
) -> dict[str, Any]:
    """The facts of a file whose checksum fits."""
    if head["sha256"] != _digest(tensors, head["facts"]):
        raise SolverBenchError(f"{path} is damaged: its checksum does not fit; make it again")
    try:
        return facts_in(head)
    except SolverBenchError as error:
        raise SolverBenchError(f"{path}: {error}") from error


def _mark(descriptor: int) -> tuple[int, ...]:
    """What tells an open file from one that took its place."""
    known = os.fstat(descriptor)
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns


def facts_in(head: dict[str, str]) -> dict[str, Any]:
    """The facts in the header of one of our files.

    Raises:
        SolverBenchError: where they are no JSON object.
    """
    try:
        found = json.loads(head.get("facts", ""))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        unfit("the facts in its header are no JSON object")
    return found


def read_plain(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file, another project's too.

    Returns:
        Tensors, and the texts in the header.

    Raises:
        SolverBenchError: for a missing or torn file, or what is none; one line that names it.
    """
    with open_source(path) as source:
        return _all(source)


def inspect(source: Source) -> tuple[dict[str, Stored], dict[str, str]]:
    """What a safetensors file holds, its numbers left in the file.

    Args:
        source: the file.

    Returns:
        Tensors in the order of their numbers, and the texts in the header.

    Raises:
        SolverBenchError: where the header is none, or the numbers are not all of what follows it.
    """
    size = int.from_bytes(source.at(0, 8), "little") if source.size >= 8 else HEADER + 1
    if size > HEADER:
        unfit("it is no safetensors file, or it is cut")
    try:
        parts = json.loads(source.at(8, size))
        head = {str(k): str(v) for k, v in parts.pop("__metadata__", {}).items()}
        if len(parts) > MOST:
            unfit(f"it has more than {MOST:,} tensors")
        places = sorted((*_numbers(part["data_offsets"]), key) for key, part in parts.items())
        edges = [0, *(end for _, end, _ in places)]
        stored = {key: _stored(source, 8 + size + start, parts[key]) for start, _, key in places}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        unfit(f"its header is no safetensors header ({type(error).__name__})")
    lengths = [end - start for start, end in pairwise(edges)]
    if [start for start, _, _ in places] != edges[:-1] or lengths != [
        value.num_bytes for value in stored.values()
    ]:
        unfit("its tensors do not lie one after another")
    if edges[-1] != source.size - 8 - size:
        unfit("it ends too early or too late, so the file is cut or damaged")
    return stored, head


def _all(source: Source) -> tuple[dict[str, Tensor], dict[str, str]]:
    stored, head = inspect(source)
    return {key: value.read() for key, value in stored.items()}, head


def _stored(source: Source, start: int, part: dict[str, Any]) -> Stored:
    """A tensor from its entry in the header."""
    shape, name = _numbers(part["shape"]), part["dtype"]
    if type(name) is not str or name not in TYPES:
        unfit(f"a tensor has the type {shown(str(name), 40)}; known are {', '.join(TYPES)}")
    if len(shape) > DIMENSIONS or any(n > LONGEST for n in shape):
        unfit("a tensor with impossible sizes")
    stride = tuple(accumulate(shape[:0:-1], mul, initial=1))[: len(shape)][::-1]
    return Stored(Storage(source, start, math.prod(shape), TYPES[name]), 0, shape, stride)


def _numbers(values: Any) -> tuple[int, ...]:
    """A list of whole numbers.

    Raises:
        TypeError: for anything else.
    """
    if type(values) is not list or not all(type(v) is int and v >= 0 for v in values):
        raise TypeError("no list of whole numbers")
    return tuple(values)


def _digest(tensors: Mapping[str, Tensor | Stored], text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for key in sorted(tensors):
        value = tensors[key]
        dtype = value.dtype if isinstance(value, Tensor) else value.storage.dtype
        digest.update(f"{key} {dtype} {tuple(value.shape)}".encode("utf-8", "surrogatepass"))
        for piece in _pieces(value):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Tensor | Stored) -> Iterator[memoryview]:
    """The bytes of a tensor; of one in a file a piece at a time, each over the one before."""
    if isinstance(value, Tensor):
        yield value.reshape(-1).view(torch.uint8).numpy().data
        return
    size, storage = value.num_bytes, value.storage
    room = memoryview(bytearray(min(size, PIECE)))
    for done in range(0, size, PIECE):
        piece = room[: size - done]
        storage.source.read_into(storage.start + done, piece)
        yield piece

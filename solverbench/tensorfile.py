"""Checked safetensors: a format name, JSON facts and a checksum in the header of every file.

Files are read a tensor at a time, each into memory of its own, so that opening one takes its size.
"""

import hashlib
import json
import math
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


def read(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote.

    Returns:
        Tensors and facts.

    Raises:
        SolverBenchError: for a missing, torn or foreign file, one of another version, or one whose
            checksum does not fit; one line that names the file.
    """
    expect_file(path, f"a {form} file")
    try:
        with path.open("rb") as file:
            tensors, head = _all(Source(file))
    except (OSError, SolverBenchError) as error:
        raise SolverBenchError(f"{path} cannot be read as {form}: {error}") from error
    found = head.get("format")
    if (
        found is None
        or not {"facts", "sha256"} <= set(head)
        or not found.startswith(form.rpartition("-")[0])
    ):
        raise SolverBenchError(f"{path} is no {form} file of solverbench")
    if found != form:
        raise SolverBenchError(f"{path} has layout {shown(found)}; this solverbench reads {form}")
    if head["sha256"] != _digest(tensors, head["facts"]):
        raise SolverBenchError(f"{path} is damaged: its checksum does not fit; make it again")
    try:
        return tensors, facts_in(head)
    except SolverBenchError as error:
        raise SolverBenchError(f"{path}: {error}") from error


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
    """Opened once: a file that is replaced meanwhile is old or new as a whole."""
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


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

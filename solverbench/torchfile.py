"""Tensors in files that torch wrote, found by own code and read when asked for; a leaf.

Three layouts: pickles whose tensors are nested streams, the zip files of ``torch.save``, and module
objects of both. Source: specs of the published files, checked against files of torch 1.12 to 2.15.
"""

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solverbench.errors import SolverBenchError, shown
from solverbench.sources import Blob, Source, refuse, unfit
from solverbench.unpickle import BASICS, Limits, Machine, Name, Names, Record

TYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
STORAGES: Names = {("torch", name): "label" for name in TYPES}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the nested stream
ZIPPED = b"PK\x03\x04"  # begins a zip
DIRECTORY = 1 << 23  # bytes of a zip directory
LARGEST = 1 << 60  # product of sizes
ZIP_FAULTS = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError)
DEPTH, MODULES, TENSORS_MOST = 32, 20_000, 20_000  # of a module tree
LETTERS, DROPPED = 200, 1000  # of a name in it; names of buffers that a module does not keep


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in a file.

    Attributes:
        source: the file.
        start: first byte.
        numel: how many.
        dtype: of each.
    """

    source: Source
    start: int
    numel: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is still in its file.

    Attributes:
        storage: where its numbers are.
        offset: of the first, in numbers.
        shape: as usual.
        stride: as usual.

    Raises:
        SolverBenchError: for sizes that torch cannot count, of an empty tensor, too.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if math.prod(max(1, n) for n in self.shape) >= LARGEST:
            unfit("a tensor with impossible sizes")

    @property
    def num_bytes(self) -> int:
        """Of the tensor once it is read."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, its own memory, in the type of the file."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        size, span = self.storage.dtype.itemsize, _span(self.shape, self.stride)
        raw = torch.empty(span * size, dtype=torch.uint8)
        start = self.storage.start + self.offset * size
        self.storage.source.read_into(start, raw.numpy().data)
        is_bool = self.storage.dtype == torch.bool  # where only 0 and 1 are defined
        flat = raw != 0 if is_bool else raw.view(self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def read_pickle(source: Source, names: Names, limits: Limits | None = None) -> Any:
    """The content of a plain pickle, tensors left in the file; the rest as ``read_any``."""
    return Machine(source, {**BASICS, **TENSORS, **names}, limits=limits).load()


def read_zip(source: Source, names: Names, limits: Limits | None = None) -> Any:
    """The content of a file of ``torch.save``, tensors left in the file; as ``read_any``."""
    entries = _entries(source)
    heads = [name for name in entries if name.endswith("data.pkl")]
    if len(heads) != 1:
        refuse("a torch file has one data.pkl")
    start, size = entries[heads[0]]
    folder = heads[0].removesuffix("data.pkl") + "data/"

    def persistent(pid: Any) -> Storage:
        dtype, key, numel = _identity(pid)
        place = entries.get(folder + key)
        if place is None or place[1] < numel * dtype.itemsize:
            refuse(f"the numbers of storage {key[:20]!a} are missing or too few")
        return Storage(source, place[0], numel, dtype)

    allowed = {**BASICS, **STORAGES, **TENSORS, **names}
    return Machine(source, allowed, start, start + size, persistent, limits).load()


def module_tensors(module: Record) -> dict[str, Stored]:
    """What ``state_dict`` of a stored module would give, in its order.

    Raises:
        SolverBenchError: for what is no module, parts that stand in two places, or more tensors
            than the file can hold.
    """
    found: dict[str, Stored] = {}
    waiting, seen, size = [("", module, 0)], set[int](), 0
    while waiting:
        prefix, record, depth = waiting.pop()
        if len(seen) > 4 * MODULES or depth > DEPTH:
            refuse("its modules are too many or too deep")
        own = _part(record, "_parameters", seen) | _kept_buffers(record, seen)
        for key, value in own.items():
            if type(value) is Stored:
                found[prefix + key] = value
                size += value.num_bytes
                if size > value.storage.source.size:
                    refuse("its tensors are larger than the file")
        if len(found) > TENSORS_MOST:
            refuse(f"it has more than {TENSORS_MOST:,} tensors")
        inner = _part(record, "_modules", seen).items()
        waiting += [(f"{prefix}{k}.", v, depth + 1) for k, v in inner if v is not None][::-1]
        _once(record, seen)
    return found


def _kept_buffers(record: Record, seen: set[int]) -> dict[str, Any]:
    dropped = record.state.get("_non_persistent_buffers_set", ())
    if not isinstance(dropped, set | tuple | list) or len(dropped) > DROPPED:
        refuse("a list of buffers is no list, or too long")
    names = {name for name in dropped if type(name) is str}
    return {k: v for k, v in _part(record, "_buffers", seen).items() if k not in names}


def _part(record: Any, name: str, seen: set[int]) -> dict[str, Any]:
    if type(record) is not Record:
        refuse(f"a value of type {type(record).__name__} stands where a module belongs")
    part = record.state.get(name)
    if not isinstance(part, dict):
        refuse(f"the module {record.name[:80]!a} has no {name}")
    _once(part, seen)
    if any(type(key) is not str or len(key) > LETTERS for key in part):
        refuse(f"a name in {name} is no text, or longer than {LETTERS} letters")
    return part


def _once(thing: Any, seen: set[int]) -> None:
    """Each module and each of its dicts stands in one place: shared ones would multiply."""
    if id(thing) in seen:
        refuse("a module, or a part of one, stands in two places")
    seen.add(id(thing))


def zip_parts(source: Source) -> list[zipfile.ZipInfo]:
    """The directory of a zip file.

    Raises:
        SolverBenchError: for a damaged or unknown one.
    """
    try:
        with zipfile.ZipFile(_Window(source)) as archive:
            return archive.infolist()
    except ZIP_FAULTS as error:
        unfit(f"its zip is damaged or of an unknown kind ({shown(str(error), 80)})")


def _entries(source: Source) -> dict[str, tuple[int, int]]:
    """First byte and size of each file in a zip; all are stored as they are."""
    return {info.filename: _place(source, info) for info in zip_parts(source)}


def _place(source: Source, info: zipfile.ZipInfo) -> tuple[int, int]:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        refuse("its zip is compressed or encrypted")
    name, extra = struct.unpack("<HH", source.at(info.header_offset + 26, 4))
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > source.size:
        refuse("it ends too early, so the file is cut or damaged")
    return start, info.file_size


class _Window(io.RawIOBase):
    """A source as a file, for the directory of a zip: large reads are refused."""

    def __init__(self, source: Source) -> None:
        self.source, self.position = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = (0, self.position, self.source.size)[whence] + offset
        if position < 0:
            raise ValueError("a position before the file")
        self.position = position
        return position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.source.size - self.position)
        size = left if size < 0 else min(size, left)
        if size > DIRECTORY:
            refuse("the directory of its zip is too large")
        self.position += size
        return self.source.at(self.position - size, size)


def _identity(pid: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and length of a persistent id."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        refuse("an outside object that is no storage")
    label, key, numel = pid[1], pid[2], pid[4]
    if type(label) is not Name or label.module != "torch" or label.name not in TYPES:
        refuse("a storage of unknown type")
    if type(key) is not str or type(numel) is not int or not 0 <= numel < 1 << 40:
        refuse("a storage without key or length")
    if len(pid) == 6 and pid[5] is not None:
        refuse("a storage that is a view of another")
    return TYPES[label.name], key, numel


def _nested(source: Source, args: tuple[Any, ...]) -> Storage:
    """``torch.storage._load_from_bytes``: four small pickles, a length, the numbers."""
    if len(args) != 1 or type(args[0]) is not Blob:
        refuse("a storage is not made of the bytes that torch writes")
    blob, limits = args[0], Limits(steps=200, text=4096, seconds=10)
    machine = Machine(
        blob.source, STORAGES, blob.start, blob.start + blob.size, lambda pid: pid, limits
    )
    if machine.load() != MAGIC or machine.load() != VERSION:
        refuse("the bytes of a storage are not those of torch")
    facts = machine.load()
    if type(facts) is not dict or facts.get("little_endian") is not True:
        refuse("a storage that is not little-endian")
    dtype, key, numel = _identity(machine.load())
    keys = machine.load()
    if type(keys) is not list or len(keys) != 1 or type(keys[0]) is not str or keys[0] != key:
        refuse("the key of a storage does not fit")
    length, left = machine.number("<q"), machine.end - machine.position
    if length != numel or left != numel * dtype.itemsize:
        refuse("the numbers of a storage are too few or too many")
    return Storage(blob.source, machine.position, numel, dtype)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _sizes(value: Any) -> tuple[int, ...]:
    """Dimensions or strides, checked."""
    if type(value) is not tuple or len(value) > 8:
        refuse("a tensor without sizes")
    if not all(type(v) is int and 0 <= v < 1 << 40 for v in value):
        refuse("a tensor with impossible sizes")
    return value


def _tensor(source: Source, args: tuple[Any, ...]) -> Stored:
    """``torch._utils._rebuild_tensor_v2``, everything inside the storage."""
    if len(args) not in (6, 7) or type(args[0]) is not Storage or type(args[1]) is not int:
        refuse("a tensor is made of something else than a storage")
    storage, offset, shape, stride = args[0], args[1], _sizes(args[2]), _sizes(args[3])
    if len(shape) != len(stride) or offset < 0 or math.prod(shape) > storage.numel:
        refuse("a tensor is larger than its storage")
    if 0 not in shape and offset + _span(shape, stride) > storage.numel:
        refuse("a tensor reaches beyond its storage")
    return Stored(storage, offset, shape, stride)


def _parameter(source: Source, args: tuple[Any, ...]) -> Stored:
    """``torch._utils._rebuild_parameter``: the tensor."""
    if len(args) != 3 or type(args[0]) is not Stored:
        refuse("a parameter is made of something else than a tensor")
    return args[0]


def _dtype(source: Source, args: tuple[Any, ...]) -> Record:
    """``numpy.dtype``: a record; numbers only."""
    if not args or type(args[0]) is not str or args[0] not in NUMBERS:
        refuse("a numpy type that is no number")
    return Record("numpy.dtype", {"kind": args[0]})


def _scalar(source: Source, args: tuple[Any, ...]) -> float | int | bool:
    """A numpy number, as one of Python."""
    if len(args) != 2 or type(args[0]) is not Record or type(args[1]) is not bytes:
        refuse("a numpy number is made of something else than bytes")
    kind, order = args[0].state.get("kind"), args[0].state.get("tuple", (3, "<"))
    if type(kind) is not str or kind not in NUMBERS or type(order) is not tuple:
        refuse("a numpy number of unknown type")
    if len(order) < 2 or type(order[1]) is not str or order[1] not in "<|":
        refuse("a numpy number that is not little-endian")
    form = NUMBERS[kind]
    if struct.calcsize(form) != len(args[1]):
        refuse("a numpy number of wrong length")
    value: float | int | bool = struct.unpack(form, args[1])[0]
    return value


NUMBERS = {
    "f8": "<d",
    "f4": "<f",
    "f2": "<e",
    "i8": "<q",
    "i4": "<i",
    "i2": "<h",
    "i1": "<b",
    "u8": "<Q",
    "u4": "<I",
    "u2": "<H",
    "u1": "<B",
    "b1": "<?",
}
TENSORS: Names = {
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _nested,
}
NUMPY: Names = {
    ("numpy", "dtype"): _dtype,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "scalar"): _scalar,
}


def read_any(source: Source, names: Names, limits: Limits | None = None) -> Any:
    """The content of a plain pickle or of a file of ``torch.save``, told apart by its first bytes.

    Args:
        source: the file.
        names: what may occur besides tensors and dicts.
        limits: what it may cost.

    Returns:
        Its content, tensors left in the file.

    Raises:
        SolverBenchError: for a file that is neither, or holds anything not allowed.
    """
    zipped = _first(source) == ZIPPED
    return (read_zip if zipped else read_pickle)(source, names, limits)


def read_published(source: Source, names: Names) -> Any:
    """The content of a published plain pickle; any other file is told.

    Raises:
        SolverBenchError: for a file that is none, or holds anything not allowed.
    """
    first = _first(source)
    if first == ZIPPED:
        unfit("it is a zip of torch.save, not a plain pickle; for an LDM use the backbone ldm")
    if first[:1] != b"\x80":
        unfit(f"it is no pickle: it begins with {first!r}")
    return read_pickle(source, names)


def _first(source: Source) -> bytes:
    if source.size < 4:
        raise SolverBenchError("the file is empty: it must hold a network")
    return source.at(0, 4)

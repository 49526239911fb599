"""Pickles written by hand, so that tests can say anything in them; and the stored fixtures."""

import io
import lzma
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solverbench.backbones import edm_files
from solverbench.backbones.edm_preconditioning import build
from solverbench.sources import Source

DATA = Path(__file__).parents[1] / "data" / "backbones"
HOSTILE = "malicious/hostile-source-valid-weights.pkl"
CLASSES = {"Positional": "PositionalEmbedding", "Fourier": "FourierEmbedding"}
TINY = {
    "img_resolution": 4,
    "img_channels": 1,
    "model_type": "DhariwalUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
STORAGES = {torch.float32: "FloatStorage", torch.float16: "HalfStorage"}


@dataclass
class Label:
    """A global name."""

    module: str
    name: str


@dataclass
class Call:
    """A call of a global name."""

    label: Label
    args: tuple[Any, ...]


@dataclass
class Made:
    """An object of a class with attributes."""

    label: Label
    state: Any


@dataclass
class Kept:
    """A value that the stream keeps under a number; without a value what it kept before."""

    index: int
    value: Any = ...


ORDERED = Call(Label("collections", "OrderedDict"), ())


def emit(value: Any) -> bytes:
    """A whole pickle of a value."""
    return b"\x80\x04" + _emit(value) + b"."


def _emit(value: Any) -> bytes:  # noqa: C901, PLR0911 (a kind of value a line)
    match value:
        case Label():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _emit(value.label) + _emit(value.args) + b"R"
        case Made():
            return _emit(value.label) + b")\x81" + _emit(value.state) + b"b"
        case Kept():
            number = struct.pack("<I", value.index)
            return b"j" + number if value.value is ... else _emit(value.value) + b"r" + number
        case dict():
            return b"}(" + b"".join(_emit(k) + _emit(v) for k, v in value.items()) + b"u"
        case tuple() | list():
            head, tail = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
            return head + b"".join(map(_emit, value)) + tail
        case set():
            return b"\x8f"
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case _:  # numbers, text, None
            return pickle.dumps(value, protocol=4)[2:-1].replace(b"\x94", b"")


def storage(values: Tensor, numel: int | None = None) -> bytes:
    """The nested stream of a storage; ``numel`` is what it claims to hold, meta has no numbers."""
    claimed = values.numel() if numel is None else numel
    label = Label("torch", STORAGES[values.dtype])
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    pid = b"\x80\x02" + _emit(("storage", label, "1", "cpu", claimed, None)) + b"Q."
    head = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), emit(1001), emit(facts), pid, emit(["1"])]
    raw = b"" if values.is_meta else values.detach().contiguous().numpy().tobytes()
    return b"".join(head) + struct.pack("<q", claimed) + raw


def tensor(values: Tensor, **other: Any) -> Call:
    """A tensor as it is pickled; ``shape``, ``stride``, ``offset``, ``numel`` may lie."""
    whole = Call(Label("torch.storage", "_load_from_bytes"), (storage(values, other.get("numel")),))
    shape = other.get("shape", tuple(values.shape))
    stride = other.get("stride", tuple(values.contiguous().stride()))
    parts = (whole, other.get("offset", 0), shape, stride, False, ORDERED)
    return Call(Label("torch._utils", "_rebuild_tensor_v2"), parts)


def persistent(name: str, state: dict[str, Any], source: str = "raise SystemExit") -> Call:
    """An object whose class comes with its program text."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name}
    label = Label("torch_utils.persistence", "_reconstruct_persistent_obj")
    return Call(label, (meta | {"state": state},))


def parts(module: nn.Module, inner: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """What torch keeps in a module; ``inner`` says how the modules in it are stored."""
    return {
        "_parameters": {k: None if p is None else tensor(p) for k, p in module._parameters.items()},
        "_buffers": {k: tensor(b) for k, b in module._buffers.items() if b is not None},
        "_non_persistent_buffers_set": set(),
        "_modules": {k: inner(m) for k, m in module._modules.items() if m is not None},
        "training": False,
    }


def stored(module: nn.Module) -> Call | Made:
    """A module in the layout of EDM's files."""
    if isinstance(module, nn.ModuleDict):
        return Made(Label("torch.nn.modules.container", "ModuleDict"), parts(module, stored))
    name = type(module).__name__
    return persistent(CLASSES.get(name, name), parts(module, stored))


def edm_tree(network: Any, keywords: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The content of an EDM file."""
    made = {"_init_args": (), "_init_kwargs": keywords, "sigma_min": 0, "sigma_max": float("inf")}
    return {"ema": persistent(type(network).__name__, parts(network, stored) | made | changes)}


def r3gan_tree(discriminator: nn.Module) -> dict[str, Any]:
    """The content of an R3GAN file, class names of the present code."""
    whole = {"_parameters": {}, "_buffers": {}, "_modules": {"Model": r3gan_part(discriminator)}}
    return {"D": Made(Label("training.networks", "Discriminator"), whole)}


def r3gan_part(module: nn.Module) -> Made:
    """A module of it; of stages the type, too."""
    name = {"Stage": "DiscriminatorStage"}.get(type(module).__name__, "ResidualBlock")
    typed = {"DataType": Label("torch", "bfloat16")} if name == "DiscriminatorStage" else {}
    return Made(Label("R3GAN.Networks", name), parts(module, r3gan_part) | typed)


@cache
def fixture_bytes(name: str) -> bytes:
    """A stored fixture, unpacked."""
    if name == "baseline-tiny-uncond-vp.pkl":
        name = HOSTILE  # the same network
    if (DATA / name).is_file():
        return (DATA / name).read_bytes()
    return lzma.decompress((DATA / f"{name}.xz").read_bytes())


def fixture_file(name: str, folder: Path) -> Path:
    """A stored fixture as a file."""
    path = folder / Path(name).name
    path.write_bytes(fixture_bytes(name))
    return path


def goldens(name: str) -> dict[str, Any]:
    """The outputs that go with a fixture."""
    with np.load(io.BytesIO(fixture_bytes(f"{name}.npz"))) as arrays:
        return {
            k: arrays[k] if arrays[k].dtype.kind == "U" else torch.from_numpy(np.array(arrays[k]))
            for k in arrays
        }


@cache
def tiny() -> tuple[bytes, Any]:
    """A small network and its file."""
    torch.manual_seed(0)
    network = build("EDMPrecond", TINY).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.normal_()
    return emit(edm_tree(network, TINY)), network


def load_bytes(data: bytes) -> Any:
    """What the loader makes of a file's bytes."""
    facts, tensors = edm_files.inspect(Source(io.BytesIO(data)))
    return edm_files.filled(facts, tensors)

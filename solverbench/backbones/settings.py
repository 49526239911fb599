"""Settings of diffusers modules in foreign files: read with limits, checked before one is built."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solverbench.errors import SolverBenchError

LARGEST_JSON = 2**24  # bytes; the vocabulary of SD is 1 MB
LARGEST_NUMBER = 2**24
MOST_LAYERS = 64  # of a block; entries of a list
MOST_BLOCKS = 256  # levels times layers times transformers; SD 1.5 has 8
WIDEST = 16_384  # channels
SIZES = {"sample_size": 1024, "in_channels": 64, "cross_attention_dim": 8192}  # largest of UNets
UNBUILDABLE = (  # what the libraries raise for settings that make no module
    *(ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError),
    AssertionError,
)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system says about a file or folder, in one line.

    Raises:
        SolverBenchError: for an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        place = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise SolverBenchError(f"{place} cannot be read: {error.strerror}") from error


def read_json(where: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SolverBenchError: for one that is missing, too large or something else.
    """
    with readable(where):
        if not where.is_file():
            raise SolverBenchError(f"{where}: is missing; a folder of diffusers has it")
        if where.stat().st_size > LARGEST_JSON:
            raise SolverBenchError(f"{where}: has more than {LARGEST_JSON} bytes")
        data = where.read_bytes()
    try:
        read = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise SolverBenchError(f"{where}: is no readable JSON") from error
    if not isinstance(read, dict):
        raise SolverBenchError(f"{where}: holds no JSON object")
    return read


def check_settings(given: Mapping[str, Any]) -> None:
    """Refuse settings that no module has, or that would take for ever to build.

    Raises:
        ValueError: names the setting.
    """
    for key, value in given.items():
        flat = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in key else LARGEST_NUMBER
        if len(flat) > MOST_LAYERS or not all(_is_plain(entry, most) for entry in flat):
            raise ValueError(f"{shown(key)} is {shown(value)}, which is no setting of a model")
    widths = given.get("block_out_channels", [1] * 4)
    if not isinstance(widths, list) or not widths or not all(map(_is_width, widths)):
        raise ValueError(
            f"block_out_channels is {shown(widths)}; wanted: a list of numbers up to {WIDEST}"
        )
    depths = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
    depth = max(_largest(given.get(key)) for key in depths)
    blocks = len(widths) * _largest(given.get("layers_per_block")) * depth
    if blocks > MOST_BLOCKS:
        raise ValueError(f"it asks for {blocks} blocks; at most {MOST_BLOCKS} are built")


def check_sizes(unet: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse a UNet whose sizes are no whole numbers in their range.

    Raises:
        ValueError: names the size.
    """
    for name in names:
        value = unet.get(name)
        if type(value) is not int or not 1 <= value <= SIZES[name]:
            raise ValueError(
                f"{name} is {shown(value)}; wanted: a whole number from 1 to {SIZES[name]}"
            )


def shown(value: object) -> str:
    """A foreign value, short and in ASCII."""
    return ascii(value)[:80]


def _is_plain(value: object, most: int) -> bool:
    if isinstance(value, int):
        return 0 <= value <= most
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str)


def _is_width(value: object) -> bool:
    return type(value) is int and 1 <= value <= WIDEST


def _largest(value: object) -> int:
    """Of a number, or of a list of them; 1 for what is none."""
    flat = value if isinstance(value, list) else [value]
    return max((entry for entry in flat if type(entry) is int), default=1)

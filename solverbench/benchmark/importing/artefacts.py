"""What the paper's published files are made of; they are read, and nothing in them is run."""

import math
from typing import Any

from solverbench.sources import Source, refuse
from solverbench.torchfile import Stored, read_any
from solverbench.unpickle import Name, Names


def _default_dict(source: Source, args: tuple[Any, ...]) -> dict[Any, Any]:
    """``collections.defaultdict``: a plain dict; what it would make of a missing key is dropped."""
    named = [arg for arg in args if arg is not None]
    if len(args) > 1 or any(type(arg) is not Name or arg.name not in KINDS for arg in named):
        refuse("a defaultdict of something else than lists or dicts")
    return {}


KINDS = ("dict", "list")
NAMES: Names = {
    ("collections", "defaultdict"): _default_dict,
    **{(module, kind): "label" for module in ("builtins", "__builtin__") for kind in KINDS},
}


def read_parts(source: Source, kind: str, needed: tuple[str, ...]) -> dict[Any, Any]:
    """The dict that a published file is, its tensors left in the file.

    Args:
        source: the file.
        kind: what it should be, for messages.
        needed: keys that it must have.

    Raises:
        SolverBenchError: for anything else.
    """
    found = read_any(source, NAMES)
    if not isinstance(found, dict):
        refuse(f"{kind} is a dict, this is a {type(found).__name__}")
    missing = [key for key in needed if key not in found]
    if missing:
        refuse(f"it lacks {', '.join(missing)}; {kind} has {', '.join(needed)}")
    return found


def has_dense_rows(tensor: Stored) -> bool:
    """Whether the rows lie one after the other and each without gaps, in any order of its axes."""
    rows, *shape = tensor.shape
    step = 1
    for stride, size in sorted(zip(tensor.stride[1:], shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return rows < 2 or tensor.stride[0] == math.prod(shape)

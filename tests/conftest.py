"""What all tests share."""

from importlib.metadata import version
from importlib.util import find_spec

import torch


def declare_operators() -> None:
    """Let the registry's torchvision be imported beside a torch that was built without CUDA.

    Its extension cannot be loaded there, and it stops over two operators that it then misses.
    Known to be enough for torch 2.13 with torchvision 0.28; nothing here uses the operators.
    """
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + schema)
    declare_operators.library = library  # type: ignore[attr-defined]  # lives as long as it


if (
    torch.version.cuda is None
    and find_spec("torchvision") is not None
    and "+cpu" not in version("torchvision")  # made for such a torch, and loads
):
    declare_operators()

"""The Inception network of 2015 whose features make the FID, from a table of its layers.

Source: Szegedy et al. (2015), table 1 and figures 5 to 7, with what the graph of 2015-12-05 does
otherwise: averages leave the border out, and the last block takes a maximum instead of one.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from solverbench.benchmark.extractors.resizing import tf1_bilinear

SIDE = 299
DIM = 2048
Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel] | tuple[int, Kernel, int]  # width, kernel, stride where it is not 1
Fork = tuple[Layer, Layer]  # two layers side by side, at the end of a branch
Branch = Sequence[Layer | Fork]
Pool = Literal["mean", "max", "shrink"]  # the last one halves the image and has no layer


class Cell(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, num_in: int, layer: Layer, same: bool = True) -> None:
        super().__init__()
        width, kernel, stride = layer if len(layer) == 3 else (*layer, 1)
        size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        keep = same and stride == 1  # layers that halve an image have no border
        border = (size[0] // 2, size[1] // 2) if keep else (0, 0)
        self.conv = nn.Conv2d(num_in, width, size, stride, border, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H', W')."""
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side and a pooled one; layers are named as published files name them."""

    def __init__(self, num_in: int, branches: Mapping[str, Branch], pool: Pool, width: int = 0):
        super().__init__()
        self.pool, self.paths = pool, list[list[list[str]]]()
        for branch, layers in branches.items():
            now, path = num_in, list[list[str]]()
            for i, layer in enumerate(layers, start=1):
                name = f"{branch}_{i}" if len(layers) > 1 else branch
                fork = [layer] if isinstance(layer[0], int) else list(layer)
                names = [name] if len(fork) == 1 else [name + letter for letter in "ab"]
                for part, one in zip(names, fork, strict=True):
                    self.add_module(part, Cell(now, one))
                path.append(names)
                now = layer[0] if isinstance(layer[0], int) else 0
            self.paths.append(path)
        if pool != "shrink":
            self.branch_pool = Cell(num_in, (width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the branches' channels, one after another."""
        found = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            found.append(y)
        return torch.cat([*found, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "shrink":
            return functional.max_pool2d(x, 3, 2)
        if self.pool == "max":
            y = functional.max_pool2d(x, 3, 1, 1)
        else:
            y = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        pooled: Tensor = self.branch_pool(y)
        return pooled


def wide(num_in: int, pooled: int) -> Mixed:
    """A block at 35 pixels."""
    small: Branch = [(64, 1), (96, 3), (96, 3)]
    branches = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": small}
    return Mixed(num_in, branches, "mean", pooled)


def split(width: int) -> Mixed:
    """A block at 17 pixels, of rows and columns of seven."""
    row, column = (1, 7), (7, 1)
    long: Branch = [(width, 1), (width, column), (width, row), (width, column), (192, row)]
    branches: Mapping[str, Branch] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, row), (192, column)],
        "branch7x7dbl": long,
    }
    return Mixed(768, branches, "mean", 192)


def broad(num_in: int, pool: Pool) -> Mixed:
    """A block at 8 pixels, whose branches fork."""
    fork: Fork = ((384, (1, 3)), (384, (3, 1)))
    branches: Mapping[str, Branch] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), fork],
        "branch3x3dbl": [(448, 1), (384, 3), fork],
    }
    return Mixed(num_in, branches, pool, 192)


def first_shrink() -> Mixed:
    """From 35 to 17 pixels."""
    small: Branch = [(64, 1), (96, 3), (96, 3, 2)]
    return Mixed(288, {"branch3x3": [(384, 3, 2)], "branch3x3dbl": small}, "shrink")


def second_shrink() -> Mixed:
    """From 17 to 8 pixels."""
    long: Branch = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
    branches: Mapping[str, Branch] = {"branch3x3": [(192, 1), (320, 3, 2)], "branch7x7x3": long}
    return Mixed(768, branches, "shrink")


class Inception(nn.Module):
    """Images in 0 .. 255 of any size to the 2048 averages before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Cell(3, (32, 3, 2))
        self.Conv2d_2a_3x3 = Cell(32, (32, 3), same=False)
        self.Conv2d_2b_3x3 = Cell(32, (64, 3))
        self.Conv2d_3b_1x1 = Cell(64, (80, 1))
        self.Conv2d_4a_3x3 = Cell(80, (192, 3), same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = wide(192, 32), wide(256, 64), wide(288, 64)
        self.Mixed_6a = first_shrink()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = split(128), split(160), split(160)
        self.Mixed_6e, self.Mixed_7a = split(192), second_shrink()
        self.Mixed_7b, self.Mixed_7c = broad(1280, "mean"), broad(2048, "max")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W), float32, to (B, 2048)."""
        x = (tf1_bilinear(images, SIDE, SIDE) - 128) / 128
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = functional.max_pool2d(x, 3, 2)
        return x.mean(dim=(2, 3))

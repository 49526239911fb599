"""Rows of a teacher set that are read or made when asked for, so that its size needs no memory."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone
from solverbench.tensorfile import Place

IN_MEMORY = 1 << 27  # bytes of noise and states that a set may keep: two sets, a quarter of 1 GB
FLOAT = 4  # bytes
AT_ONCE = 64  # rows that iterating holds


class LazyRows(ABC):
    """What stands for a tensor (M, C, H, W) on the host without being one.

    Args:
        shape: (M, C, H, W).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Some rows.

        Args:
            rows: a slice, or row numbers (B,), int64, not negative.

        Returns:
            (B, C, H, W) on the host, memory of its own.

        Raises:
            IndexError: for rows that are not there.
        """
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        rows = rows.cpu()
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise IndexError(f"rows are a slice or int64 numbers (B,); got {rows.dtype}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows lie between 0 and {len(self) - 1}")
        return self._read(rows)

    def __iter__(self) -> Iterator[Tensor]:
        """Row after row, (C, H, W) each."""
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    @abstractmethod
    def _read(self, rows: Tensor) -> Tensor:
        """Rows (B, C, H, W) by their numbers (B,), which were checked."""


Rows = Tensor | LazyRows


class SeededRows(LazyRows):
    """Noise, made from its seeds whenever it is asked for: the same bits each time.

    Args:
        backbone: makes it.
        seeds: one a row.
    """

    def __init__(self, backbone: Backbone, seeds: Sequence[int]) -> None:
        super().__init__((len(seeds), *backbone.state_shape))
        self.backbone, self.seeds = backbone, seeds

    def _read(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.empty(0, *self.shape[1:])
        return self.backbone.noise([self.seeds[row] for row in rows.tolist()]).cpu()


class StoredRows(LazyRows):
    """Rows of tensors in several files, copied out of memory maps.

    A map lasts for one reading: the pages of the files leave with it, and no file stays open.

    Args:
        parts: places of tensors (n, C, H, W), and which of their rows, in order.
    """

    def __init__(self, parts: Sequence[tuple[Place, range]]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(len(rows) for _, rows in parts)]
        self.dtype = parts[0][0].dtype
        super().__init__((self.starts[-1], *parts[0][0].shape[1:]))

    def _read(self, rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        numbers = torch.bucketize(rows, torch.tensor(self.starts[1:]), right=True)
        for number in torch.unique(numbers).tolist():
            (place, held), (here,) = self.parts[number], torch.where(numbers == number)
            inside = rows[here] - self.starts[number] + held.start
            found.index_copy_(0, here, place.mapped().index_select(0, inside))
        return found


def stays(num: int, shape: Sequence[int]) -> bool:
    """Whether noise and states of so many rows of a shape (C, H, W) may be kept in memory."""
    return 2 * FLOAT * num * math.prod(shape) <= IN_MEMORY

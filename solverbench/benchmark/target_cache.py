"""What a perceptual distance reads of the teacher, computed once a row and kept."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from solverbench.benchmark.distances import Distance
from solverbench.benchmark.spec import FitSpec
from solverbench.errors import SolverBenchError

Embedded = tuple[Tensor, ...]
Compare = Callable[[Tensor, Tensor], Tensor]


class TargetCache:
    """Distances to the rows of one teacher set; features of its first rows are kept.

    As many rows are kept as the budget holds, those of the lowest places, on the device of the
    states. Features can depend on the batch by rounding, so a kept row is embedded by itself and
    the others with those of their batch: distances are then the same whichever rows were met
    before, and a fit goes on with the same bits although no cache is in its checkpoint.

    A distance that reads the teacher's state itself, such as ``l2``, is called as it is.

    Args:
        distance: on final states.
        budget_bytes: of all kept features.
        dtype: of kept features; ``bfloat16`` rounds those that are not kept, too.
    """

    def __init__(
        self,
        distance: Callable[[Tensor, Tensor], Tensor],
        budget_bytes: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.distance, self.budget_bytes, self.dtype = distance, budget_bytes, dtype
        self.kept: dict[int, Embedded] = {}  # by place in the teacher set, rows (1, ...)
        self._capacity: int | None = None

    def distances(self, student: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """Distances (B,) of states (B, C, H, W); gradients flow into ``student`` only.

        Args:
            student: states to train.
            target: the teacher's, (B, C, H, W).
            rows: their places in the teacher set, (B,), on the CPU.

        Raises:
            SolverBenchError: where the budget holds no row.
        """
        if not isinstance(self.distance, Distance) or not self.distance.embeds:
            return self.distance(student, target)
        return self.distance.between(student, self._features(self.distance, target, rows.tolist()))

    @property
    def num_bytes(self) -> int:
        """Of what is kept now."""
        return sum(map(size_of, self.kept.values()))

    @torch.no_grad()
    def _features(self, distance: Distance, target: Tensor, places: list[int]) -> Embedded:
        capacity = self._rows_at_most(distance, target)
        for i, place in enumerate(places):
            if place < capacity and place not in self.kept:
                self.kept[place] = self._narrow(distance.embed(target[i : i + 1]))
        beyond = [i for i, place in enumerate(places) if place not in self.kept]
        computed = self._narrow(distance.embed(target[beyond])) if beyond else ()
        others = zip(*(torch.split(part, 1) for part in computed), strict=True)
        found = [self.kept[p] if p in self.kept else next(others) for p in places]
        return tuple(_wide(torch.cat(parts)) for parts in zip(*found, strict=True))

    def _rows_at_most(self, distance: Distance, target: Tensor) -> int:
        if self._capacity is None:
            row = size_of(self._narrow(distance.embed(target[:1])))
            if row > self.budget_bytes:
                raise SolverBenchError(
                    f"target_cache of {self.budget_bytes} bytes holds no row: the distance reads "
                    f"{row} bytes of each; give it more, or leave target_cache out"
                )
            self._capacity = self.budget_bytes // row
        return self._capacity

    def _narrow(self, embedded: Embedded) -> Embedded:
        if self.dtype == "float32":
            return embedded
        return tuple(p.bfloat16() if p.is_floating_point() else p for p in embedded)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of their elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _wide(part: Tensor) -> Tensor:
    return part.float() if part.dtype == torch.bfloat16 else part


def cached_distance(spec: FitSpec, distance: Compare) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``distance(student, target)`` told the rows (B,) of the training set, which it may keep."""
    if spec.target_cache is None:
        return lambda student, target, rows: distance(student, target)
    return TargetCache(distance, spec.target_cache, spec.target_cache_dtype).distances

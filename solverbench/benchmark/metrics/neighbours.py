"""Precision and recall by nearest neighbours."""

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import Metric
from solverbench.images import Features, Reference, check

K = 5
BLOCK = 2**24  # distances held at once, 128 MiB


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (M, N) of float64 rows by direct differences.

    The matrix-product shortcut would decide ties and duplicates at random.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(rows: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Distance (N,) of each row (N, D), float64, to its k-th nearest other row.

    Duplicates count as neighbours.

    Raises:
        ValueError: for no more than k rows.
    """
    if len(rows) <= k:
        raise ValueError(f"k={k} nearest neighbours need more than {k} rows; got {len(rows)}.")
    blocks = torch.split(rows, max(1, block // len(rows)))
    return torch.cat([distances(part, rows).kthvalue(k + 1, dim=1).values for part in blocks])


def covered(points: Tensor, centres: Tensor, k: int = K, block: int = BLOCK) -> int:
    """How many points lie strictly inside a ball around a centre.

    A ball reaches to the k-th nearest other centre; a point on its surface is outside.

    Args:
        points: (M, D), finite.
        centres: (N, D), finite, N > k.
        k: neighbours.
        block: distances held at once; changes memory only.

    Returns:
        Between 0 and M.

    Raises:
        ValueError: where D differs, rows are NaN or infinite, or too few.

    Source: Kynkaanniemi et al. (2019), eq. 1, with < in place of <= as in Naeem et al. (2020).
    """
    x, y = check(points).double(), check(centres).double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features have {x.shape[1]} and {y.shape[1]} dimensions; use one extractor for both."
        )
    reach = radii(y, k, block)
    blocks = torch.split(x, max(1, block // len(y)))
    return sum(int((distances(part, y) < reach).any(dim=1).sum()) for part in blocks)


def equal_sets(generated: Features, reference: Reference) -> tuple[Tensor, Tensor]:
    """Embeddings of both sides, the larger cut to as many first rows as the smaller has.

    Raises:
        ValueError: where the reference carries no rows.
    """
    if reference.features is None:
        raise ValueError("this reference holds moments only; precision and recall need rows.")
    x, y = generated.embedding, reference.features.embedding
    num = min(len(x), len(y))
    return x[:num], y[:num]


class Precision(Metric):
    """Share of generated images near some image of the data set.

    If one set is larger, only its first rows count, as many as the other has.
    """

    higher_is_better = True
    against = "data"
    digits = 3
    about = "share of generated embeddings strictly inside a data ball, k=5, equal numbers"

    def label(self, extractor_name: str) -> str:
        """``precision[cifar16]`` and the like."""
        return f"precision[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Between 0 and 1."""
        x, y = equal_sets(generated, reference)
        return covered(x, y) / len(x)


class Recall(Metric):
    """Share of the data set's images near some generated image.

    If one set is larger, only its first rows count, as many as the other has.
    """

    higher_is_better = True
    against = "data"
    digits = 3
    about = "share of data embeddings strictly inside a ball of generated ones, k=5, equal numbers"

    def label(self, extractor_name: str) -> str:
        """``recall[cifar16]`` and the like."""
        return f"recall[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Between 0 and 1."""
        x, y = equal_sets(generated, reference)
        return covered(y, x) / len(y)

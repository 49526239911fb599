"""Monge Inception Distance: optimal transport along random directions."""

from typing import ClassVar, Literal

import torch

from solverbench.benchmark.metrics.base import Measured, Metric, Rows, as_pair, rows_of
from solverbench.images import Features, Reference

BYTES = 2**28  # projections held at once


def mind(*, generated: Rows, reference: Rows, directions: int = 1000, seed: int = 2020) -> Measured:
    """Three times D times the mean squared difference of sorted projections.

    Args:
        generated: (M, D).
        reference: (N, D); the larger set is cut to the smaller by a seeded permutation.
        directions: random unit vectors.
        seed: of the cut and the directions.

    Returns:
        At least 0; float32 arithmetic.

    Raises:
        ValueError: where D differs, a set has fewer than two rows, or NaN or infinity occur.

    Source: Monge Inception Distance (2026), as in torch-fidelity after 0.4.0, whose random
        numbers are reproduced.
    """
    if directions < 1:
        raise ValueError(f"mind needs at least one direction; got {directions}.")
    x, y = (rows.float() for rows in as_pair(generated, reference))
    m, n = len(x), len(y)
    rng, num, dim = torch.Generator().manual_seed(seed), min(m, n), x.shape[1]
    if m > num:
        x = x[torch.randperm(m, generator=rng)[:num]]
    if n > num:
        y = y[torch.randperm(n, generator=rng)[:num]]
    units = torch.randn(directions, dim, generator=rng)
    units /= units.norm(dim=1, keepdim=True)
    total = torch.zeros((), dtype=torch.float64)
    for part in torch.split(units, max(1, BYTES // (8 * num))):
        moved = (x @ part.T).sort(dim=0).values - (y @ part.T).sort(dim=0).values
        total += moved.square().double().sum()
    value = 3 * dim * float(total) / (num * directions)
    facts = {"directions": directions, "seed": seed, "rows": num}
    return Measured(
        value=value, num_generated=m, num_reference=n, dim=dim, flags=("no_se",), facts=facts
    )


class MIND(Metric):
    """Monge Inception Distance of embeddings to the data set."""

    higher_is_better = False
    against: ClassVar[Literal["data", "teacher"]] = "data"
    digits = 2
    about = "sliced transport cost of embeddings to the data set, 1000 directions, equal numbers"
    reads_images = False

    def label(self, extractor_name: str) -> str:
        """``MIND[extractor]``."""
        return f"MIND[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """At least 0; the reference must carry rows."""
        return self.measure(generated=generated, reference=reference).value

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """Without an error: none is known."""
        return mind(generated=generated.embedding, reference=rows_of(reference))

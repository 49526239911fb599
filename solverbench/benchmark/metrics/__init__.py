"""Metrics: pure functions of features, with errors."""

from solverbench.benchmark.metrics.base import Difference, Measured, Metric, paired_difference
from solverbench.benchmark.metrics.cmmd import cmmd
from solverbench.benchmark.metrics.frechet import frechet_distance, paired_frechet
from solverbench.benchmark.metrics.kernel import (
    KernelDistance,
    full_kernel_distance,
    kernel_distance,
)
from solverbench.benchmark.metrics.mind import mind
from solverbench.benchmark.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    coverage_ceiling,
    density_coverage,
    neighbour_metrics,
    precision_recall,
)
from solverbench.benchmark.metrics.paired import image_difference
from solverbench.benchmark.metrics.repeats import (
    Repeats,
    frechet_infinity,
    half_split,
    over_seed_blocks,
)
from solverbench.benchmark.metrics.statistics import (
    read_features,
    read_statistics,
    write_statistics,
)
from solverbench.images import Moments, Statistics

__all__ = [
    "DensityCoverage",
    "Difference",
    "KernelDistance",
    "Measured",
    "Metric",
    "Moments",
    "PrecisionRecall",
    "Repeats",
    "Statistics",
    "cmmd",
    "coverage_ceiling",
    "density_coverage",
    "frechet_distance",
    "frechet_infinity",
    "full_kernel_distance",
    "half_split",
    "image_difference",
    "kernel_distance",
    "mind",
    "neighbour_metrics",
    "over_seed_blocks",
    "paired_difference",
    "paired_frechet",
    "precision_recall",
    "read_features",
    "read_statistics",
    "write_statistics",
]

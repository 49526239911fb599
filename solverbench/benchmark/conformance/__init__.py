"""What every plugin must keep to, as checks that its author can run: ``solverbench check NAME``."""

from solverbench.benchmark.conformance.backbones import check_backbone
from solverbench.benchmark.conformance.checks import Check
from solverbench.benchmark.conformance.metrics import check_metric
from solverbench.benchmark.conformance.schedules import check_schedule
from solverbench.benchmark.conformance.solvers import check_solver, gaussian_error

__all__ = [
    "Check",
    "check_backbone",
    "check_metric",
    "check_schedule",
    "check_solver",
    "gaussian_error",
]

"""Checks of a metric, on drawn features."""

import math

import torch

from solverbench import registry
from solverbench.benchmark.conformance.checks import Check, UnmetError, content, demand, run_probes
from solverbench.benchmark.features import reference_of
from solverbench.benchmark.metrics.base import Metric, standard_error
from solverbench.benchmark.results import FLAGS
from solverbench.images import Features


def check_metric(name: str) -> list[Check]:
    """Check a metric on drawn features.

    Args:
        name: registered name.

    Returns:
        A check a requirement.

    Raises:
        SolverBenchError: for an unknown name.
    """
    metric: Metric = registry.metrics.get(name)()
    return run_probes(
        {
            "says what it is": lambda: _described(metric),
            "equal sets give the best value": lambda: _best(metric),
            "same features twice give the same value": lambda: _metric_pure(metric),
            "measuring gives that value with its error": lambda: _measured(metric),
            "features that do not fit are refused": lambda: _refuses(metric),
        }
    )


def _drawn(seed: int, dims: int = 5, shift: float = 0.0) -> Features:
    """Features (40, dims), textures of the same size and images (40, 1, dims, dims)."""
    rng = torch.Generator().manual_seed(seed)
    rows, texture = (torch.randn(40, dims, generator=rng) + shift for _ in range(2))
    return Features(rows, texture, torch.rand(40, 1, dims, dims, generator=rng) * 2 - 1 + shift)


def _value(metric: Metric, generated: Features, other: Features) -> float:
    return metric.compute(generated=generated, reference=reference_of(other, "drawn"))


def _described(metric: Metric) -> str:
    label = metric.label("extractor")
    declared = metric.against in ("data", "teacher") and isinstance(metric.higher_is_better, bool)
    demand(declared and metric.digits >= 0 and bool(metric.about), "a declaration is missing")
    return demand(bool(label), f"{label}: {metric.about}")


def _best(metric: Metric) -> str:
    sign = 1.0 if metric.higher_is_better else -1.0
    equal = _value(metric, _drawn(0), _drawn(0))
    others = [_value(metric, _drawn(0, shift=s), _drawn(0)) for s in (0.5, 3.0)]
    shown = f"{equal:.3g} for equal sets, {others[0]:.3g} and {others[1]:.3g} for shifted ones"
    finite = bool(torch.tensor([equal, *others]).isfinite().all())
    ordered = sign * equal >= sign * others[0] >= sign * others[1] and equal != others[1]
    return demand(finite and ordered, shown)


def _metric_pure(metric: Metric) -> str:
    ours, theirs = _drawn(1), _drawn(2)
    before = content(vars(ours))
    first, again = (_value(metric, ours, theirs) for _ in range(2))
    demand(before == content(vars(ours)), "the features that went in were changed")
    return demand(first == again, f"{first:.6g} and {again:.6g}")


def _measured(metric: Metric) -> str:
    ours, theirs = _drawn(1), reference_of(_drawn(2), "drawn")
    found = metric.measure(generated=ours, reference=theirs)
    value = metric.compute(generated=ours, reference=theirs)
    demand(found.value == value, f"measure gave {found.value:.6g}, compute {value:.6g}")
    unknown = set(found.flags) - set(FLAGS)
    demand(not unknown, f"flags without an explanation: {', '.join(sorted(unknown))}")
    if found.se is None:
        told = any(flag.startswith("no_se") for flag in found.flags)
        return demand(told, "no error" if told else "no error, and no flag says why")
    demand(math.isfinite(found.se) and found.se >= 0, f"the error is {found.se}")
    if found.influence is not None:
        rows, own = len(found.influence), standard_error(found.influence)
        demand(rows == len(ours.embedding), f"{rows} influences of {len(ours.embedding)} images")
        demand(
            math.isclose(own, found.se, rel_tol=1e-9, abs_tol=1e-12),  # the same float64 numbers
            f"the influences have the error {own:.6g}, not {found.se:.6g}",
        )
    return f"{value:.3g} with error {found.se:.3g}"


def _refuses(metric: Metric) -> str:
    nothing = Features(*(torch.full_like(v, torch.nan) for v in vars(_drawn(0)).values()))
    for what, generated in (("other sizes", _drawn(1, dims=4)), ("NaN", nothing)):
        try:
            value = _value(metric, generated, _drawn(0))
        except ValueError:
            continue
        raise UnmetError(f"{what} gave {value:.3g}; a ValueError was due")
    return "other sizes and NaN raise ValueError"

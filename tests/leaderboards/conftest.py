"""Small made-up records."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from solverbench.benchmark.results import Cost, MetricFacts, Provenance, Result
from solverbench.benchmark.spec import EvaluationSpec, FitSpec, Named, RunSpec, TeacherSpec, Value
from solverbench.benchmark.store import Influence

TITLES = {
    "ddim": "DDIM",
    "unipc-3": "UniPC (3M)",
    "dpmpp-3m": "DPM-Solver++ (3M)",
    "gs": "GS",
    "ld3-dpmpp": "LD3 (DPM++)",
    "ld3-ipndm": "LD3 (iPNDM)",
    "s4s-alt": "S4S-Alt (re-implementation)",
}
LEARNED = ("gs", "ld3-dpmpp", "ld3-ipndm", "s4s-alt")
TEACHER = Named(name="unipc-3", options={"t_min": 1e-4})
FACTS = {
    "fd": MetricFacts(label="FD[cifar16]", higher_is_better=False, about="moments to the data"),
    "fid": MetricFacts(label="FID", higher_is_better=False),
    "recall": MetricFacts(label="recall", higher_is_better=True, digits=3),
}
Make = Callable[..., Result]


def exact(result: Result, metric: str) -> Influence:
    """Influences of images without any noise: values alone tell rows apart."""
    return np.zeros(4)


def make(
    solver: str,
    nfe: int,
    metrics: Mapping[str, float] | None = None,
    *,
    options: Mapping[str, Value] | None = None,
    schedule: Named | None = None,
    seed: int = 0,
    iterations: int = 20,
    reason: str = "",
    backbone: str = "cifar16",
    num_images: int = 2000,
    version: int = 1,
    created: str = "2026-11-20T10:00:00Z",
    device: str = "cpu",
) -> Result:
    fit = FitSpec(iterations=iterations) if solver in LEARNED else None
    spec = RunSpec(
        backbone=Named(name=backbone),
        solver=TEACHER if solver == "teacher" else Named(name=solver, options=dict(options or {})),
        schedule=schedule,
        nfe=20 if solver == "teacher" else nfe,
        teacher=TeacherSpec(solver=TEACHER, nfe=20),
        evaluation=EvaluationSpec(num_images=num_images, metrics=("fd",)),
        fit=fit,
        seed=seed,
        version=version,
    )
    metrics = dict(metrics or {})
    cost = Cost(
        nfe=nfe,
        network_rows=nfe,
        seconds_per_image=0.00123456,
        decode_seconds_per_image=0.0,
        peak_bytes=3 * 2**20,
        fit_seconds=12.5 if fit else 0.0,
        fit_network_rows=1200 * nfe if fit or schedule else 0,
        fit_pairs=1656 if fit else 0,
        num_parameters=35 if fit else 0,
    )
    made = Provenance(
        solverbench="0.1.0",
        python="3.11",
        torch="2.11",
        device=device,
        threads=1,
        commit="abc",
        weights_sha256="",
        reference_sha256="",
        created=created,
    )
    return Result(
        spec=spec,
        title=TITLES[spec.solver.name] + (f" [{schedule.name.upper()}]" if schedule else ""),
        status="failed" if reason else "ok",
        reason=reason,
        metrics=metrics,
        metric_facts={name: FACTS[name] for name in metrics},
        cost=None if reason else cost,
        provenance=made,
    )


@pytest.fixture(name="make")
def make_fixture() -> Make:
    return make


@pytest.fixture
def group() -> list[Result]:
    """Two seeds of GS at NFE 4, a failure of it at 6, two training-free solvers, the teacher."""
    return [
        make("teacher", 20, {"fd": 6.15}),
        make("gs", 4, {"fd": 7.0}, seed=0),
        make("gs", 4, {"fd": 7.1}, seed=1),
        make("gs", 6, seed=0, reason="loss is not finite | at iteration 12"),
        make("unipc-3", 4, {"fd": 13.0}),
        make("unipc-3", 6, {"fd": 7.123456789}),
        make("ddim", 4, {"fd": 50.0}),
        make("ddim", 6, {"fd": 30.0}),
    ]

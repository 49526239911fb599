"""What a record says beside its numbers: conventions, or the reason of a failure."""

from typing import Any

import torch

from solverbench import registry
from solverbench.benchmark.provenance import provenance
from solverbench.benchmark.results import Result
from solverbench.benchmark.scheduling import schedule_title
from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau

TRAINED = ("fit", "seed", "backbone", "parameters")  # known from the spec, or too long


def conventions(tableau: Tableau) -> dict[str, Any]:
    """Every option of a solver as it was used, and its times."""
    meta = tableau.meta
    kept = dict(meta["options"])
    kept |= {key: meta[key] for key in ("t_max", "t_min", "output", "conversion")}
    kept |= meta["frame"]
    trained = meta.get("trained", {})
    kept |= {key: value for key, value in trained.items() if key not in TRAINED}
    return kept | {"t": tableau.nodes.tolist(), "t_eval": tableau.tau.tolist()}


def failed(spec: RunSpec, reason: str) -> Result:
    """The record of a cell that did not end."""
    kind = registry.solvers.get(spec.solver.name)
    return Result(
        spec=spec,
        title=(kind.title or kind.__name__) + schedule_title(spec),
        status="failed",
        reason=reason,
        provenance=provenance(torch.device("cpu"), "", ""),
    )


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, SolverBenchError) else f"{type(error).__name__}: {text}"

"""The benchmark suite for few-step diffusion solvers.

Names are imported when they are first used, so that ``import solverbench`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solverbench.benchmark.load import load_backbone, load_discriminator, load_solver
    from solverbench.benchmark.results import Result
    from solverbench.benchmark.run import run
    from solverbench.benchmark.spec import EvaluationSpec, FitSpec, Named, RunSpec, TeacherSpec
    from solverbench.errors import SolverBenchError
    from solverbench.solvers.tableau import Tableau, sample

_HOMES = {
    "EvaluationSpec": "solverbench.benchmark.spec",
    "FitSpec": "solverbench.benchmark.spec",
    "Named": "solverbench.benchmark.spec",
    "Result": "solverbench.benchmark.results",
    "RunSpec": "solverbench.benchmark.spec",
    "SolverBenchError": "solverbench.errors",
    "Tableau": "solverbench.solvers.tableau",
    "TeacherSpec": "solverbench.benchmark.spec",
    "load_backbone": "solverbench.benchmark.load",
    "load_discriminator": "solverbench.benchmark.load",
    "load_solver": "solverbench.benchmark.load",
    "run": "solverbench.benchmark.run",
    "sample": "solverbench.solvers.tableau",
}

__all__ = [
    "EvaluationSpec",
    "FitSpec",
    "Named",
    "Result",
    "RunSpec",
    "SolverBenchError",
    "Tableau",
    "TeacherSpec",
    "load_backbone",
    "load_discriminator",
    "load_solver",
    "run",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'solverbench' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

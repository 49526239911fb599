"""Solvers: the contract, the tableau, and one file per paper or family."""

from solverbench.solvers.base import (
    Batch,
    Conversion,
    Distillation,
    FitTask,
    LearnableSolver,
    MultistepSolver,
    Network,
    Setting,
    Solver,
    State,
    TrainingRule,
)
from solverbench.solvers.tableau import Denoiser, Tableau, check_match, integrate, sample, trace

__all__ = [
    "Batch",
    "Conversion",
    "Denoiser",
    "Distillation",
    "FitTask",
    "LearnableSolver",
    "MultistepSolver",
    "Network",
    "Setting",
    "Solver",
    "State",
    "Tableau",
    "TrainingRule",
    "check_match",
    "integrate",
    "sample",
    "trace",
]

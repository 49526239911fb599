"""Solvers: the contract, the tableau, and one file per paper or family."""

from solverbench.solvers.base import (
    Conversion,
    LearnableSolver,
    MultistepSolver,
    Network,
    Setting,
    Solver,
    State,
)
from solverbench.solvers.fitting import Batch, Distillation, FitTask, TrainingRule
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

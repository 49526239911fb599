"""What a schedule optimiser is: it chooses the times of a solver and leaves its formulas alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solverbench.solvers.base import Setting
from solverbench.solvers.tableau import Denoiser


@dataclass(frozen=True, eq=False)
class ScheduleTask:
    """What a schedule is made for.

    Attributes:
        setting: noise schedule, NFE and network output of the solver that will use it.
        num_steps: N, steps of that solver.
        t_min: where it ends.
        backbone: the network, counted by the harness.
        noise: seeds to unit-variance noise, (B, C, H, W).
        condition: seeds to what the network is conditioned on, or None.
    """

    setting: Setting
    num_steps: int
    t_min: float
    backbone: Denoiser
    noise: Callable[[Sequence[int]], Tensor]
    condition: Callable[[Sequence[int]], Any]


class ScheduleOptimiser(ABC):
    """Makes the times of any solver; its options are the keywords of ``__init__``.

    Attributes:
        source: paper, with section or algorithm.
        title: as papers write it in brackets behind the solver, for example ``GITS``.
    """

    source: ClassVar[str]
    title: ClassVar[str]

    def check(self, task: ScheduleTask) -> None:  # noqa: B027 (a hook)
        """Called before anything slow, so it must not use the network.

        Raises:
            SolverBenchError: where it is known beforehand that ``times`` will refuse the task.
        """

    @abstractmethod
    def times(self, task: ScheduleTask) -> Tensor:
        """The nodes, (N + 1,), float64, strictly decreasing from T to the last time.

        Raises:
            SolverBenchError: where there is none for this task.
        """

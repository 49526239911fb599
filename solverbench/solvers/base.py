"""What a solver is: ordinary arithmetic on a state, bound to a noise schedule and an NFE."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from solverbench.schedule import NoiseSchedule, Output, Prediction, TimeGrid, nodes

if TYPE_CHECKING:
    from solverbench.solvers.fitting import FitTask, TrainingRule
    from solverbench.solvers.tableau import Tableau

State = Tensor  # an image batch (B, C, H, W) or a coefficient row (N + 1,): both add and scale
Network = Callable[[State, Tensor, Tensor], Prediction]  # (x, conversion time, network time)
Conversion = Literal["node", "network"]
MAX_NFE = 4096  # a table has NFE^2 entries


@dataclass(frozen=True, eq=False)
class Setting:
    """What a solver is bound to when it is made.

    Attributes:
        noise_schedule: frame and times.
        nfe: network evaluations a sample.
        output: what the network gives: ``x0``, ``eps`` or ``v``.
    """

    noise_schedule: NoiseSchedule
    nfe: int
    output: Output = "x0"

    def __post_init__(self) -> None:
        if not isinstance(self.nfe, int) or not 1 <= self.nfe <= MAX_NFE:
            raise ValueError(f"nfe is a whole number from 1 to {MAX_NFE}; got {self.nfe}")


class Solver(ABC):
    """A method that turns noise into a sample with a fixed number of network calls.

    A subclass writes ``integrate`` (or derives from ``MultistepSolver`` and writes ``update``).
    It must be linear in the state and the predictions; then ``trace`` turns it into a ``Tableau``.
    Arguments of ``__init__`` after ``setting`` are its options; they end in every record.

    Attributes:
        source: paper, with equation or algorithm.
        title: name as papers write it; an instance may add its variant.
        consistent: False for a method that does not solve the equation as it starts, untrained,
            and is kept for reproduction only; its ``flags`` must say so.
        conversion: which time turns noise into data predictions, the node's or the network's.
        options: every option with its value, defaults included.
        flags: what a reader of a table must know, for example ``afs``.
    """

    source: ClassVar[str]
    title: str = ""
    consistent: ClassVar[bool] = True
    conversion: Conversion = "node"
    flags: tuple[str, ...] = ()
    options: dict[str, Any]
    setting: Setting

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the options, so that a record can hold them all."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        bound.apply_defaults()
        options = dict(list(bound.arguments.items())[2:])
        object.__setattr__(self, "options", options)
        return self

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
        """
        self.setting = setting
        self._nodes = nodes(
            setting.noise_schedule, self.num_steps(setting.nfe), schedule, t_min, rho
        )

    def num_steps(self, nfe: int) -> int:
        """Steps that use ``nfe`` calls; ValueError where there is no such number."""
        return nfe

    def grid(self) -> TimeGrid:
        """The time grid of this run."""
        return self.setting.noise_schedule.grid(self._nodes)

    def tableau(self) -> "Tableau":
        """The solver as a table: ``integrate``, traced on coefficient rows; differentiable."""
        from solverbench.solvers.tableau import trace

        return trace(self)

    @abstractmethod
    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Carry ``x`` from the first node to the last.

        Args:
            x: initial state, any shape.
            grid: what ``grid()`` gave.
            network: called as ``network(x, t_conversion, t_network)``; NFE times in all.

        Returns:
            The sample, shape of ``x``.
        """


class MultistepSolver(Solver):
    """One call a step, formulas over the latest predictions; a subclass writes ``update``.

    Attributes:
        order: predictions used at most, the present one included.
        prediction: what the history holds, ``x0`` or ``eps``.
    """

    order: ClassVar[int]
    prediction: ClassVar[Literal["x0", "eps"]]

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
        lower_order_final: bool = False,
        afs: bool = False,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            lower_order_final: fall to orders 2 and 1 in the last steps.
            afs: analytical first step: the first prediction is a formula and costs no call, so N
                calls make N + 1 steps. For noise predictions only.
        """
        if afs and self.prediction != "eps":
            raise ValueError(f"{self.title or type(self).__name__} predicts data; afs needs noise")
        self.lower_order_final, self.afs = lower_order_final, afs
        self.flags = ("afs",) if afs else ()
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho)

    def num_steps(self, nfe: int) -> int:
        """One call a step, none for an analytical first step."""
        return nfe + 1 if self.afs else nfe

    def order_at(self, i: int, num_steps: int) -> int:
        """Predictions that step ``i`` uses: a low start and, if asked for, a low end."""
        order = min(self.order, i + 1)
        return min(order, num_steps - i) if self.lower_order_final else order

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Call, remember, update, N times."""
        history: list[State] = []
        for i in range(grid.num_steps):
            if self.afs and i == 0:
                history.append(x / torch.hypot(grid.alpha[0], grid.sigma[0]))
            else:
                t_model = grid.t_eval[i]
                t = grid.t[i] if self.conversion == "node" else t_model
                predicted = network(x, t, t_model)
                history.append(predicted.x0 if self.prediction == "x0" else predicted.eps)
            history = history[-self.order :]
            x = self.update(x, i, grid, history[-self.order_at(i, grid.num_steps) :])
        return x

    @abstractmethod
    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """One step.

        Args:
            x: state at node i, any shape.
            i: step, 0 (noisiest) to N - 1.
            grid: the time grid.
            history: predictions to use, oldest first, at most ``order``; its length is the order
                of this step.

        Returns:
            State at node i + 1.
        """


class LearnableSolver(Solver, nn.Module):
    """A solver with parameters; they appear in ``grid`` and ``integrate`` as ordinary tensors."""

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
    ) -> None:
        """Bind to a setting; see ``Solver``."""
        nn.Module.__init__(self)
        Solver.__init__(self, setting, schedule=schedule, t_min=t_min, rho=rho)

    def rule(self, task: "FitTask") -> "TrainingRule":
        """How a batch trains this solver; plain distillation unless overridden."""
        from solverbench.solvers.fitting import Distillation

        return Distillation(self, task)

    def num_used(self) -> int:
        """How many numbers training can change."""
        return sum(p.numel() for p in self.parameters())


def combined(weights: Tensor, states: Sequence[State]) -> State:
    """sum_k weights[k] states[k] in one product, shape of a state.

    Args:
        weights: at least as many as there are states, (K,); the others are not used.
        states: one at least.
    """
    stacked = torch.stack(list(states))
    used = weights if len(weights) == len(stacked) else weights[: len(stacked)]
    if stacked.dim() == 2:  # coefficient rows, in the type of the weights
        return used @ stacked
    return (used.to(stacked) @ stacked.flatten(1)).view_as(states[0])


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """The value of an option with few allowed ones; ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value

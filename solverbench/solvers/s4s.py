"""S4S: multistep solvers whose coefficients are learned from a teacher's samples."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from solverbench.errors import SolverBenchError
from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, Network, Setting, State, combined
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.fitting import Batch, FitTask, check_rates
from solverbench.solvers.ld3 import LearnedTimes
from solverbench.solvers.relaxed import Group, Relaxed
from solverbench.solvers.unipc import UniPC3

ORDER = 3  # predictions combined in a step, unless there is no such limit
FIRST_PHASES = 2  # what S4S-Alt begins with: LD3's first phase is two rounds of logits alone
MAX_PAIRS = 8  # of a coefficient and a schedule phase
PATIENCE = 2  # pairs in a row without a better validation
PHASES = 10  # of a budget, unless said otherwise: the first ones and four pairs
MARK = " (re-implementation)"  # ends every title: the authors' code is not public
VARIANTS = {"learn_times": "learned times", "joint": "joint", "full_order": "full order"}


class S4S(LearnedTimes):
    """Linear multistep method with free coefficients, and shifts of the network times.

    x' = a x + b sum_i c[i - 1, n] M_{n + 1 - i} with a = sigma' / sigma, b = -alpha' expm1(-h) and
    data predictions M. Untrained it is DPM-Solver++(3M) that does not lower its order at the end.

    Attributes:
        theta: logits of the steps, (N + 1,); a buffer unless they are learned.
        xi: shifts of the network times, (N + 1,); those of both ends are not used.
        c: coefficients of predictions, lag i in row i - 1, (K, N); lag 1 is the newest, and entries
            that reach back before the first call are not used.

    Source: Frankel et al. (2025), S4S, in the form that GAS (arXiv 2510.17699) gives in table 1;
    choices that neither states are those of solvers.md section 7. Differs from the paper: its code
    is not public, so learning rates, radius and clipping (every group of parameters by itself) are
    those of LD3.
    """

    source = "Frankel et al. (2025), S4S (arXiv 2502.17423), as in GAS (arXiv 2510.17699), table 1"
    title = "S4S (re-implementation)"

    def __init__(  # noqa: PLR0913 (the choices that the paper leaves open)
        self,
        setting: Setting,
        *,
        t_min: float | None = None,
        space: str = "logsnr",
        decoupled: bool = True,
        conversion: str = "network",
        learn_times: bool = False,
        full_order: bool = False,
        theta_lr: float = 5e-3,
        xi_lr: float | None = None,
        radius: float = 0.001,
        shift_lr: float | None = None,
    ) -> None:
        """Bind to a setting; the initial grid is uniform in the chosen space.

        Args:
            setting: noise schedule, NFE, network output.
            t_min: last time; the noise schedule's own by default.
            space: where steps are uniform and shifts added: ``logsnr`` or ``time``.
            decoupled: learn network times beside the nodes.
            conversion: time that turns noise into data predictions: ``network`` or ``node``.
            learn_times: learn the nodes too, together with the coefficients.
            full_order: use all earlier predictions instead of three; the others start at 0.
            theta_lr: learning rate of the logits.
            xi_lr: learning rate of the shifts; 0.1 / N by default.
            radius: how far training moves the noise of a pair, times d / N^2; 0 keeps it.
            shift_lr: learning rate of the noise; 12 / N by default.
        """
        super().__init__(
            setting, t_min=t_min, space=space, decoupled=decoupled, conversion=conversion
        )
        if not learn_times:
            logits = self.theta.detach()
            del self.theta
            self.register_buffer("theta", logits)
        num = setting.nfe
        self.kept = num if full_order else min(ORDER, num)
        self.theta_lr, self.radius = theta_lr, radius
        self.xi_lr = 0.1 / num if xi_lr is None else xi_lr
        self.shift_lr = 12 / num if shift_lr is None else shift_lr
        names = ("radius", "theta_lr", "xi_lr", "shift_lr")
        check_rates({name: getattr(self, name) for name in names})
        parts = [words for option, words in VARIANTS.items() if self.options.get(option)]
        if parts:
            self.title = f"{self.title.removesuffix(MARK)} ({', '.join(parts)}){MARK}"
        self._start()

    def _start(self) -> None:
        """Make the coefficients, those of an untrained solver."""
        self.c = nn.Parameter(self._steps_of(DPMpp3M(self.setting, lower_order_final=False)))

    def num_used(self) -> int:
        """Lag i counts from step i - 1 on, where there is such a past."""
        return super().num_used() + sum(min(self.kept, n + 1) for n in range(self.setting.nfe))

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Call, remember, combine; N times."""
        (a, b), c = _scales(grid), self.c.T.unbind()
        past: list[State] = []
        for n in range(grid.num_steps):
            past = [self._call(x, n, grid, network), *past][: self.kept]
            x = a[n] * x + b[n] * combined(c[n], past)
        return x

    def _call(self, x: State, n: int, grid: TimeGrid, network: Network) -> State:
        """Data prediction at node n, shape of ``x``."""
        told = grid.t_eval[n]
        return network(x, grid.t[n] if self.conversion == "node" else told, told).x0

    @torch.no_grad()
    def _steps_of(self, solver: MultistepSolver) -> Tensor:
        """The steps of another solver on the present grid, divided by b: as ``c``, (K, N)."""
        grid = self.grid()
        table = torch.zeros(self.kept, grid.num_steps, dtype=torch.float64)
        for n, b in enumerate(_scales(grid)[1]):
            used = min(ORDER, n + 1)
            lags = torch.eye(used, dtype=torch.float64)
            row = solver.update(torch.zeros_like(lags[0]), n, grid, lags.flip(0).unbind())
            table[:used, n] = row / b
        return table

    def rule(self, task: FitTask) -> Relaxed:
        """LD3's, with Adam on the coefficients; all groups at once."""
        names = ("c", "theta", "xi")
        return Relaxed(self, task, self._groups(task), phase=lambda iteration: names, **self._ball)

    @property
    def _ball(self) -> dict[str, float]:
        return {"radius": self.radius, "shift_lr": self.shift_lr}

    def _groups(self, task: FitTask) -> list[Group]:
        """Coefficients, logits, shifts: what of them is learned."""
        times = {"theta", "xi"}
        weights = {key: p for key, p in self.named_parameters() if key not in times}
        adam = torch.optim.Adam(weights.values(), lr=task.lr)
        groups = [Group("c", weights, adam, task.lr / 100)]
        if self.theta.requires_grad:
            logits = torch.optim.RMSprop([self.theta], lr=self.theta_lr, momentum=0.9)
            groups.append(Group("theta", {"theta": self.theta}, logits, self.theta_lr / 100))
        if self.decoupled:
            shifts = torch.optim.SGD([self.xi], lr=self.xi_lr)
            groups.append(Group("xi", {"xi": self.xi}, shifts, min(1e-6, self.xi_lr)))
        return groups


class S4SPC(S4S):
    """S4S with a corrector that shares the calls; N in all, as many as without it.

    But in the last step, the call is made at the predicted point and corrects the step from its
    beginning: x' = a x + b (sum_i cc[i, n] M_{n + 1 - i} + cc[0, n] m). Untrained it is UniPC-3
    (bh1) that does not lower its order at the end.

    Attributes:
        cc: coefficients of the corrector, (K + 1, N - 1): of the call at the predicted point in row
            0, of lag i in row i.

    Source: solvers.md section 7, LMS+PC; see ``S4S``.
    """

    title = "S4S, LMS+PC (re-implementation)"

    def _start(self) -> None:
        """Predictor and corrector of UniPC."""
        solver = UniPC3(self.setting, lower_order_final=False)
        self.c = nn.Parameter(self._steps_of(solver))
        self.cc = nn.Parameter(self._corrections_of(solver))

    def num_used(self) -> int:
        """The corrector has one number more than the predictor, and none in the last step."""
        used = sum(min(self.kept, n + 1) + 1 for n in range(self.setting.nfe - 1))
        return super().num_used() + used

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Predict, call, correct; the history holds calls at predicted points."""
        (a, b), c, cc = _scales(grid), self.c.T.unbind(), self.cc.T.unbind()
        last = grid.num_steps - 1
        past = [self._call(x, 0, grid, network)]
        for n in range(last):
            m = self._call(a[n] * x + b[n] * combined(c[n], past), n + 1, grid, network)
            x = a[n] * x + b[n] * combined(cc[n], [m, *past])
            past = [m, *past][: self.kept]
        return a[last] * x + b[last] * combined(c[last], past)

    @torch.no_grad()
    def _corrections_of(self, solver: UniPC3) -> Tensor:
        """Corrected steps of UniPC on the present grid, divided by b: as ``cc``, (K + 1, N - 1)."""
        grid = self.grid()
        table = torch.zeros(self.kept + 1, grid.num_steps - 1, dtype=torch.float64)
        for n, b in enumerate(_scales(grid)[1][:-1]):
            used = min(ORDER, n + 1)
            m, *lags = torch.eye(used + 1, dtype=torch.float64).unbind()
            table[: used + 1, n] = solver.correct(torch.zeros_like(m), n, grid, lags[::-1], m) / b
        return table


class S4SAlt(S4S):
    """S4S that learns its nodes too, in turns with the coefficients.

    Source: solvers.md section 7, S4S-Alt; see ``S4S``. Joint training is algorithm 3 of the paper.
    Differs: a phase is a share of the budget, not a pass over the training set, so that a budget
    of few passes has room for pairs.
    """

    title = "S4S-Alt (re-implementation)"

    def __init__(  # noqa: PLR0913 (the choices that the paper leaves open)
        self,
        setting: Setting,
        *,
        t_min: float | None = None,
        space: str = "logsnr",
        decoupled: bool = True,
        conversion: str = "network",
        full_order: bool = False,
        theta_lr: float = 5e-3,
        xi_lr: float | None = None,
        radius: float = 0.001,
        shift_lr: float | None = None,
        phase: int | None = None,
        joint: bool = False,
    ) -> None:
        """Bind to a setting; the initial grid is uniform in the chosen space.

        Args:
            setting: noise schedule, NFE, network output.
            t_min: last time; the noise schedule's own by default.
            space: where steps are divided and shifts added: ``logsnr`` or ``time``.
            decoupled: learn network times beside the nodes.
            conversion: time that turns noise into data predictions: ``network`` or ``node``.
            full_order: use all earlier predictions instead of three; the others start at 0.
            theta_lr: learning rate of the logits.
            xi_lr: learning rate of the shifts; 0.1 / N by default.
            radius: how far training moves the noise of a pair, times d / N^2; 0 keeps it.
            shift_lr: learning rate of the noise; 12 / N by default.
            phase: iterations of a phase; a tenth of the budget by default, which makes the two
                first phases and four pairs.
            joint: train coefficients and times at once, without phases.
        """
        if phase is not None and phase < 1:
            raise ValueError(f"phase is at least 1 iteration; got {phase}")
        self.phase, self.joint = phase, joint
        super().__init__(
            setting,
            t_min=t_min,
            space=space,
            decoupled=decoupled,
            conversion=conversion,
            learn_times=True,
            full_order=full_order,
            theta_lr=theta_lr,
            xi_lr=xi_lr,
            radius=radius,
            shift_lr=shift_lr,
        )

    def rule(self, task: FitTask) -> Relaxed:
        """In turns, unless joint.

        Raises:
            SolverBenchError: where the budget ends before the first pair of turns does.
        """
        if self.joint:
            return super().rule(task)
        length = self.phase or max(1, task.iterations // PHASES)
        least = (FIRST_PHASES + 2) * length
        if task.iterations < least:
            raise SolverBenchError(
                f"s4s-alt needs {least} iterations for {FIRST_PHASES} first phases and a pair of "
                f"{length} each; fit.iterations is {task.iterations}: raise it or lower phase"
            )
        return Alternating(self, task, self._groups(task), length=length, **self._ball)


class Alternating(Relaxed):
    """Turns of coefficients and schedule, after a first phase of two turns on the logits alone.

    It ends after eight pairs of turns, or after two in a row that brought no better validation; it
    asks for a validation at the end of each turn.

    Args:
        solver: whose parameters are trained.
        task: from the harness.
        groups: ``c``, ``theta`` and ``xi``.
        length: iterations of a turn.
        radius: see ``Relaxed``.
        shift_lr: see ``Relaxed``.

    Source: solvers.md section 7.
    """

    def __init__(
        self,
        solver: S4S,
        task: FitTask,
        groups: Sequence[Group],
        *,
        length: int,
        radius: float,
        shift_lr: float,
    ) -> None:
        super().__init__(solver, task, groups, radius=radius, shift_lr=shift_lr, phase=self._names)
        self.length = length
        self.judged, self.fruitless = -1, 0  # pairs: the last one looked at; in a row in vain
        self.mark = math.inf  # best validation when it was looked at

    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """One step of whose turn it is."""
        logs = super().step(batch, scale)
        self.finished = self.finished or self._ends()
        return logs

    @property
    def wants_validation(self) -> bool:
        """At the end of each turn."""
        return self.iteration % self.length == 0

    def validated(self, loss: float) -> None:
        """Judge a pair by the first validation after its end."""
        super().validated(loss)
        if self._pairs() > self.judged:
            self.fruitless = 0 if self.best_loss < self.mark else self.fruitless + 1
            self.judged, self.mark = self._pairs(), self.best_loss
            self.finished = self.finished or self._ends()

    def state(self) -> dict[str, Tensor]:
        """That of ``Relaxed``, and what is known of the pairs."""
        known = [self.judged, self.fruitless, self.mark]
        return super().state() | {"pairs": torch.tensor(known, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        super().load_state(state)
        judged, fruitless, self.mark = state["pairs"].tolist()
        self.judged, self.fruitless = int(judged), int(fruitless)
        self.finished = self.finished or self._ends()

    def _pairs(self) -> int:
        """Pairs of turns that are over; -1 during the first phase."""
        return (self.iteration // self.length - FIRST_PHASES) // 2

    def _ends(self) -> bool:
        return self._pairs() >= MAX_PAIRS or self.fruitless >= PATIENCE

    def _names(self, iteration: int) -> Collection[str]:
        turn = iteration // self.length - FIRST_PHASES
        if turn < 0:
            return ("theta",)
        return ("theta", "xi") if turn % 2 else ("c",)


def _scales(grid: TimeGrid) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Factors a of the state and b of the predictions, N numbers each."""
    a = grid.sigma[1:] / grid.sigma[:-1]
    return a.unbind(), (-grid.alpha[1:] * torch.expm1(-grid.lam.diff())).unbind()

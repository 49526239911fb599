"""LD3: step times and network times of a fixed solver, learned from a teacher's samples."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import (
    Conversion,
    LearnableSolver,
    MultistepSolver,
    Network,
    Setting,
    State,
    choice,
)
from solverbench.solvers.dpmpp import DPMpp2M, DPMpp3M
from solverbench.solvers.fitting import FitTask, check_rates
from solverbench.solvers.ipndm import IPNDM2, IPNDM3
from solverbench.solvers.relaxed import Group, Relaxed
from solverbench.solvers.unipc import UniPC2, UniPC3

UNIFORM = {"logsnr": "logsnr", "time": "time-uniform"}  # the grid of equal logits, by space


class LearnedTimes(LearnableSolver):
    """Nodes and network times of LD3; a subclass writes ``integrate``.

    The nodes divide log-SNR or time by a softmax of logits; network times are the nodes, moved by
    bounded shifts. The first and the last node are fixed. A parameter whose ``requires_grad`` is
    taken away is frozen and not counted.

    Attributes:
        theta: logits of the steps, (N + 1,). The first one has no effect: the share that it takes
            is normalised away.
        xi: shifts of the network times in the chosen space, (N + 1,); those of both ends are not
            used.

    Source: Tong et al. (2025), LD3, section 4, as in solvers.md section 6.1.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        t_min: float | None = None,
        space: str = "logsnr",
        window: float = 0.5,
        logit_bound: bool = False,
        decoupled: bool = True,
        conversion: str = "network",
    ) -> None:
        """Bind to a setting; the initial grid is uniform in the chosen space.

        Args:
            setting: noise schedule, NFE, network output.
            t_min: last time; the noise schedule's own by default.
            space: where steps are divided and shifts added: ``logsnr`` or ``time``.
            window: largest shift, in smallest steps; 0.5 keeps network times ordered.
            logit_bound: in ``logsnr``, measure the window in gaps between logits, as the authors'
                code does; nothing moves until the logits differ.
            decoupled: learn network times beside the nodes.
            conversion: time that turns noise into data predictions: ``network`` as LD3 has it, or
                ``node`` as the code of GAS.
        """
        self.space = choice("space", space, UNIFORM)
        if not 0 < window <= 1:
            raise ValueError(f"window is above 0 and at most 1; got {window}")
        if logit_bound and space == "time":
            raise ValueError("logit_bound belongs to space logsnr; the space is 'time'")
        super().__init__(setting, schedule=UNIFORM[space], t_min=t_min)
        self.window, self.logit_bound, self.decoupled = window, logit_bound, decoupled
        chosen: Conversion = "node" if conversion == "node" else "network"
        choice("conversion", conversion, ("network", "node"))
        self.conversion = chosen
        size = self.num_steps(setting.nfe) + 1
        self.theta = nn.Parameter(torch.ones(size, dtype=torch.float64))
        self.xi = nn.Parameter(torch.zeros(size, dtype=torch.float64), requires_grad=decoupled)

    def num_used(self) -> int:
        """Of theta and xi: all logits but the first, the shifts of interior nodes.

        One of these logits is redundant, as a common shift of theirs changes nothing; it counts
        all the same. A lone step has none; what is frozen does not count.
        """
        num = len(self.theta) - 1
        logits = num if num > 1 else 0
        return logits * self.theta.requires_grad + (num - 1) * self.xi.requires_grad

    def grid(self) -> TimeGrid:
        """Nodes from the logits; network times shifted from them."""
        schedule, ends = self.setting.noise_schedule, self._nodes[[0, -1]]
        place = self._placed(schedule.lam(ends) if self.space == "logsnr" else ends)
        inner, told = place[1:-1], place[1:-1]
        if self.decoupled:
            told = inner + self._shifts(place)
        if self.space == "logsnr":
            inner, told = schedule.inverse_lam(inner), schedule.inverse_lam(told)
        t = torch.cat([ends[:1], inner, ends[1:]])
        return schedule.grid(t, torch.cat([ends[:1], told]))

    def _placed(self, ends: Tensor) -> Tensor:
        """Nodes in the chosen space, (N + 1,), between ``ends`` (2,).

        Logits run with log-SNR, so against time: there the last step is the second logit's.
        """
        steps = torch.softmax(self.theta[1:], dim=0)
        if self.space == "time":
            steps = steps.flip(0)
        share = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
        return ends[0] + (ends[1] - ends[0]) * share / share[-1]

    def _shifts(self, place: Tensor) -> Tensor:
        """Shifts of the interior, (N - 1,), inside a window through which no gradient flows.

        On its border the gradient of a shift is 1, but a window without width lets none through.
        """
        gaps = (self.theta if self.logit_bound else place).detach().diff().abs()
        bound = self.window * gaps.min()
        return torch.where(bound > 0, torch.clamp(self.xi[1:-1], -bound, bound), 0.0)


class _LD3(LearnedTimes):
    """LD3 on a multistep solver, whose formulas stay as they are.

    Its three learning rates are options; ``fit.lr``, the rate of Adam in other methods, is not
    used.

    Attributes:
        base: the solver that runs on the learned times.

    Source: Tong et al. (2025), LD3, as in solvers.md section 6. Differs from the authors' code: see
    ``Relaxed``; the network is not called at the last node.
    """

    source = "Tong et al. (2025), LD3, sections 3 and 4"
    bases: ClassVar[dict[int, type[MultistepSolver]]]

    def __init__(  # noqa: PLR0913 (the choices that the paper and its code leave open)
        self,
        setting: Setting,
        *,
        t_min: float | None = None,
        space: str = "logsnr",
        window: float = 0.5,
        logit_bound: bool = False,
        decoupled: bool = True,
        conversion: str = "network",
        order: int = 3,
        radius: float = 0.001,
        theta_lr: float = 5e-3,
        xi_lr: float | None = None,
        shift_lr: float | None = None,
        first_phase: float = 2 / 7,
    ) -> None:
        """Bind to a setting; the initial grid is uniform in the chosen space.

        Args:
            setting: noise schedule, NFE, network output.
            t_min: last time; the noise schedule's own by default.
            space: where steps are divided and shifts added: ``logsnr`` or ``time``.
            window: largest shift, in smallest steps; 0.5 keeps network times ordered.
            logit_bound: in ``logsnr``, measure the window in gaps between logits, as the authors'
                code does; nothing moves until the logits differ.
            decoupled: learn network times beside the nodes.
            conversion: time that turns noise into data predictions: ``network`` as LD3 has it, or
                ``node`` as the code of GAS.
            order: of the base solver, 2 or 3.
            radius: how far training moves the noise of a pair, times d / N^2; 0 keeps it.
            theta_lr: learning rate of the logits.
            xi_lr: learning rate of the shifts; 0.1 / N by default.
            shift_lr: learning rate of the noise; 12 / N by default.
            first_phase: share of the budget that trains the logits alone.
        """
        super().__init__(
            setting,
            t_min=t_min,
            space=space,
            window=window,
            logit_bound=logit_bound,
            decoupled=decoupled,
            conversion=conversion,
        )
        if order not in self.bases:
            raise ValueError(f"order is {order}; allowed: {', '.join(map(str, self.bases))}")
        if not 0 <= first_phase <= 1:
            raise ValueError(f"first_phase is from 0 to 1; got {first_phase}")
        self.radius, self.first_phase, self.theta_lr = radius, first_phase, theta_lr
        self.xi_lr = 0.1 / setting.nfe if xi_lr is None else xi_lr
        self.shift_lr = 12 / setting.nfe if shift_lr is None else shift_lr
        names = ("radius", "theta_lr", "xi_lr", "shift_lr")
        check_rates({name: getattr(self, name) for name in names})
        self.base = self._based(self.bases[order])
        self.base.conversion = self.conversion

    def _based(self, kind: type[MultistepSolver]) -> MultistepSolver:
        """The base solver; its own grid is not used."""
        return kind(self.setting)

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """The base solver on the learned grid."""
        return self.base.integrate(x, grid, network)

    def rule(self, task: FitTask) -> Relaxed:
        """LD3's own: RMSprop on the logits first, then SGD on the shifts as well."""
        logits = torch.optim.RMSprop([self.theta], lr=self.theta_lr, momentum=0.9)
        groups = [Group("theta", {"theta": self.theta}, logits, self.theta_lr / 100)]
        if self.decoupled:
            shifts = torch.optim.SGD([self.xi], lr=self.xi_lr)
            groups.append(Group("xi", {"xi": self.xi}, shifts, 1e-6))
        first = self.first_phase * task.iterations
        return Relaxed(
            self,
            task,
            groups,
            radius=self.radius,
            shift_lr=self.shift_lr,
            phase=lambda iteration: ("theta",) if iteration < first else ("theta", "xi"),
        )


class LD3DPMpp(_LD3):
    """LD3 on DPM-Solver++, its order lowered in the last steps."""

    title = "LD3 (DPM++)"
    bases: ClassVar[dict[int, type[MultistepSolver]]] = {2: DPMpp2M, 3: DPMpp3M}


class LD3IPNDM(_LD3):
    """LD3 on iPNDM."""

    title = "LD3 (iPNDM)"
    bases: ClassVar[dict[int, type[MultistepSolver]]] = {2: IPNDM2, 3: IPNDM3}


class LD3UniPC(_LD3):
    """LD3 on UniPC, its order lowered in the last steps."""

    title = "LD3 (UniPC)"
    bases: ClassVar[dict[int, type[MultistepSolver]]] = {2: UniPC2, 3: UniPC3}

    def __init__(  # noqa: PLR0913 (the choices that the paper and its code leave open)
        self,
        setting: Setting,
        *,
        t_min: float | None = None,
        space: str = "logsnr",
        window: float = 0.5,
        logit_bound: bool = False,
        decoupled: bool = True,
        conversion: str = "network",
        order: int = 3,
        radius: float = 0.001,
        theta_lr: float = 5e-3,
        xi_lr: float | None = None,
        shift_lr: float | None = None,
        first_phase: float = 2 / 7,
        variant: str = "bh1",
        detached: bool = False,
    ) -> None:
        """Bind to a setting; the initial grid is uniform in the chosen space.

        Args:
            setting: noise schedule, NFE, network output.
            t_min: last time; the noise schedule's own by default.
            space: where steps are divided and shifts added: ``logsnr`` or ``time``.
            window: largest shift, in smallest steps; 0.5 keeps network times ordered.
            logit_bound: in ``logsnr``, measure the window in gaps between logits, as the authors'
                code does; nothing moves until the logits differ.
            decoupled: learn network times beside the nodes.
            conversion: time that turns noise into data predictions: ``network`` as LD3 has it, or
                ``node`` as the code of GAS.
            order: of the base solver, 2 or 3.
            radius: how far training moves the noise of a pair, times d / N^2; 0 keeps it.
            theta_lr: learning rate of the logits.
            xi_lr: learning rate of the shifts; 0.1 / N by default.
            shift_lr: learning rate of the noise; 12 / N by default.
            first_phase: share of the budget that trains the logits alone.
            variant: of UniPC, ``bh1`` or ``bh2``.
            detached: leave the gradient through UniPC's matrix of step ratios out, as the public
                UniPC does, and LD3's own results with it.
        """
        self.variant, self.detached = variant, detached
        super().__init__(
            setting,
            t_min=t_min,
            space=space,
            window=window,
            logit_bound=logit_bound,
            decoupled=decoupled,
            conversion=conversion,
            order=order,
            radius=radius,
            theta_lr=theta_lr,
            xi_lr=xi_lr,
            shift_lr=shift_lr,
            first_phase=first_phase,
        )

    def _based(self, kind: type[MultistepSolver]) -> MultistepSolver:
        """UniPC with its own options."""
        return kind(self.setting, variant=self.variant, detached=self.detached)  # type: ignore[call-arg]

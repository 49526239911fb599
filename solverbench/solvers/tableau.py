"""A solver as a lower-triangular table, and the one loop that samples with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.errors import SolverBenchError
from solverbench.schedule import NoiseSchedule, Output, Prediction, TimeGrid
from solverbench.solvers.base import Setting, Solver, State
from solverbench.solvers.replay import Plan, Play, Replay, play

FORMAT = "solverbench-tableau-1"
Memory = Literal["store", "recompute"] | int


class Denoiser(Protocol):
    """What ``sample`` needs of a backbone; a ``player`` makes its passes without gradients."""

    schedule: NoiseSchedule
    output: Output
    t_floor: float
    state_shape: tuple[int, int, int]

    def evaluate(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """Raw network output for x (B, C, H, W) at time t ()."""
        ...


@dataclass(frozen=True, eq=False)
class Tableau:
    """A solver with N calls: all it takes to sample.

    With e_k the raw output of call k and z unit noise, call j sees
    y_j = A[j, 0] z + sum_{k < j} A[j, k + 1] e_k at time tau[j], and y_N is the sample.

    Attributes:
        A: coefficients, (N + 1, N + 1), lower triangular, float64.
        tau: times told to the network, (N,), float64.
        nodes: times of the grid, (N' + 1,), float64; for reading, not for sampling.
        meta: solver, options, frame, output, conversion, t_max, t_min, nfe (JSON values).
    """

    A: Tensor
    tau: Tensor
    nodes: Tensor
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Network calls a sample."""
        return len(self.tau)

    def detach(self) -> "Tableau":
        """The same numbers without gradients."""
        return Tableau(self.A.detach(), self.tau.detach(), self.nodes.detach(), self.meta)

    def leaf(self) -> "Tableau":
        """The same numbers as leaves, which collect gradients where these have a graph."""
        A = self.A.detach().requires_grad_(self.A.requires_grad)
        tau = self.tau.detach().requires_grad_(self.tau.requires_grad)
        return Tableau(A, tau, self.nodes.detach(), self.meta)

    def backward_from(self, leaf: "Tableau") -> None:
        """Carry the gradients that ``leaf`` has collected through this table's graph."""
        pairs = [(self.A, leaf.A.grad), (self.tau, leaf.tau.grad)]
        found = [(own, grad) for own, grad in pairs if grad is not None]
        if found:
            torch.autograd.backward([own for own, _ in found], [grad for _, grad in found])

    def save(self, path: str | Path) -> Path:
        """Write safetensors with metadata and checksum, aside first and then renamed."""
        tensors = {"A": self.A, "tau": self.tau, "nodes": self.nodes}
        tensorfile.write(Path(path), FORMAT, tensors, self.meta)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Tableau":
        """Read what ``save`` wrote.

        Raises:
            SolverBenchError: for a missing, torn or foreign file, or one of another version.
        """
        tensors, meta = tensorfile.read(Path(path), FORMAT)
        num = len(tensors["tau"])
        if tensors["A"].shape != (num + 1, num + 1):
            raise SolverBenchError(f"{path} is damaged: its tables have unequal sizes")
        return cls(tensors["A"], tensors["tau"], tensors["nodes"], meta)


class _Scales:
    """Signal and noise scales at the times of a run, those of its grid without a second pass."""

    def __init__(self, schedule: NoiseSchedule, grid: TimeGrid) -> None:
        self.schedule = schedule
        self.known = [
            (times, alpha.unbind(), sigma.unbind())
            for times, alpha, sigma in (
                (grid.t, grid.alpha, grid.sigma),
                (grid.t_eval, grid.alpha_eval, grid.sigma_eval),
            )
        ]

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a time (), read from the grid where ``t`` is one of its elements."""
        for times, alpha, sigma in self.known:
            place = t.storage_offset() - times.storage_offset()
            if _root(t) is _root(times) and times.stride() == (1,) and 0 <= place < len(times):
                return alpha[place], sigma[place]
        return self.schedule.alpha(t), self.schedule.sigma(t)


def _root(t: Tensor) -> Tensor:
    """The tensor that a view looks at."""
    return t if t._base is None else t._base


class _Tracer:
    """Stands in for the network: call k returns unit vector k + 1."""

    def __init__(self, setting: Setting, grid: TimeGrid) -> None:
        self.setting, self.scales = setting, _Scales(setting.noise_schedule, grid)
        self.basis = torch.eye(setting.nfe + 1, dtype=torch.float64).unbind()
        self.rows: list[Tensor] = []
        self.times: list[Tensor] = []

    def __call__(self, x: State, t: Tensor, t_model: Tensor) -> Prediction:
        if len(self.rows) == self.setting.nfe:
            raise ValueError(f"the solver calls the network more than {self.setting.nfe} times")
        self.rows.append(x)
        self.times.append(t_model)
        return _predict(
            self.scales, self.setting.output, (x, self.basis[len(self.rows)]), t, t_model
        )


def _predict(
    scales: _Scales, output: Output, states: tuple[State, State], t: Tensor, t_model: Tensor
) -> Prediction:
    """What a call says; ``states`` are the one that went in and the one that came out."""
    convert = scales.at(t) if decoupled(t, t_model) else None
    return Prediction(*states, output, scales.at(t_model), convert)


def decoupled(t: Tensor, t_model: Tensor) -> bool:
    """Whether data is formed at other times than the network is told, or may come to be.

    Args:
        t: conversion times, any shape.
        t_model: times told to the network, shape of ``t``.
    """
    learned = t.requires_grad or t_model.requires_grad
    return t is not t_model and (learned or not torch.equal(t, t_model))


def trace(solver: Solver) -> Tableau:
    """Run a solver on coefficient rows instead of images.

    Args:
        solver: bound to its setting.

    Returns:
        Its tableau, float64; gradients reach the solver's parameters.

    Raises:
        ValueError: where it does not make exactly the calls it was asked for.
    """
    setting, grid = solver.setting, solver.grid()
    tracer = _Tracer(setting, grid)
    start = setting.noise_schedule.prior_std * tracer.basis[0]
    end = solver.integrate(start, grid, tracer)
    if len(tracer.rows) != setting.nfe:
        raise ValueError(f"the solver made {len(tracer.rows)} calls; nfe is {setting.nfe}")
    return described(solver, grid, torch.stack([*tracer.rows, end]), torch.stack(tracer.times))


def described(solver: Solver, grid: TimeGrid, A: Tensor, tau: Tensor) -> Tableau:
    """The tableau of a solver with all it must say of itself.

    Args:
        solver: bound to its setting.
        grid: what its ``grid()`` gave.
        A: coefficients, (N + 1, N + 1).
        tau: times told to the network, (N,).

    Returns:
        Both with the nodes of the grid, and in ``meta`` the facts that ``Tableau`` lists.
    """
    setting = solver.setting
    meta = {
        "solver": type(solver).__name__,
        "title": solver.title or type(solver).__name__,
        "source": solver.source,
        "options": solver.options,
        "nfe": setting.nfe,
        "frame": setting.noise_schedule.facts(),
        "t_max": setting.noise_schedule.t_max,
        "t_min": float(grid.t[-1].detach()),
        "output": setting.output,
        "conversion": solver.conversion,
    }
    return Tableau(A, tau, grid.t, meta)


def integrate(
    solver: Solver,
    backbone: Denoiser,
    noise: Tensor,
    condition: Any = None,
    watch: Callable[[Prediction], None] | None = None,
) -> Tensor:
    """Run a solver's own formulas on images; the slow twin of ``sample``, for checks.

    Args:
        solver: bound to the backbone's schedule and output.
        backbone: the network.
        noise: unit-variance noise, (B, C, H, W).
        condition: for the network.
        watch: shown every prediction, with the state it was made for.

    Returns:
        Final state, (B, C, H, W).
    """
    grid = solver.grid()
    scales = _Scales(solver.setting.noise_schedule, grid)

    def network(x: State, t: Tensor, t_model: Tensor) -> Prediction:
        raw = backbone.evaluate(x, t_model, condition)
        predicted = _predict(scales, solver.setting.output, (x, raw), t, t_model)
        if watch:
            watch(predicted)
        return predicted

    start = solver.setting.noise_schedule.prior_std * noise
    return solver.integrate(start, grid, network)


def check_match(backbone: Denoiser, tableau: Tableau, noise: Tensor) -> None:
    """Refuse a tableau made for another frame, output or range of times, or noise of another shape.

    Raises:
        SolverBenchError: says what differs.
    """
    meta = tableau.meta
    wanted = {
        "frame": backbone.schedule.facts(),
        "output": backbone.output,
        "t_max": backbone.schedule.t_max,
    }
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise SolverBenchError(
                f"the tableau was made for {key} {meta.get(key)}, the backbone has {value}"
            )
    if meta.get("conversion") not in ("node", "network"):
        raise SolverBenchError(
            f"the tableau converts at {meta.get('conversion')}; allowed: node, network"
        )
    if not meta["t_min"] >= backbone.t_floor * (1 - 1e-9):
        raise SolverBenchError(
            f"the tableau ends at t = {meta['t_min']:g}, the backbone reaches {backbone.t_floor:g}"
        )
    if tuple(noise.shape[1:]) != tuple(backbone.state_shape):
        raise SolverBenchError(
            f"noise has shape {tuple(noise.shape)}; expected (B, *{tuple(backbone.state_shape)})"
        )
    if not bool(torch.isfinite(tableau.A).all() and torch.isfinite(tableau.tau).all()):
        raise SolverBenchError("the tableau holds numbers that are not finite: its fit diverged")
    if float(tableau.tau.detach().min()) <= 0:
        raise SolverBenchError("the tableau asks the network for a time at or below 0: it diverged")


def sample(
    backbone: Denoiser,
    tableau: Tableau,
    noise: Tensor,
    condition: Any = None,
    memory: Memory = "store",
    on_call: Callable[[int], None] | None = None,
    beside: int = 0,
) -> Tensor:
    """Turn noise into a sample; the only loop that touches images (``replay.py`` holds it).

    Args:
        backbone: the network; its parameters should be frozen.
        tableau: the solver.
        noise: unit-variance noise, (B, C, H, W).
        condition: for the network, or None.
        memory: where gradients are recorded: ``store`` keeps the activations of every call, a
            number k those of k calls, ``recompute`` none; calls that are not kept run again in the
            backward pass. The gradients are equal.
        on_call: told the number of each call before it is made.
        beside: the last so many rows take no gradient; they share the network's forward passes
            with the others, unless activations are kept.

    Returns:
        Final state, (B, C, H, W), dtype and device of ``noise``.

    Raises:
        SolverBenchError: where tableau and backbone do not fit.
        ValueError: for an unknown ``memory`` or a ``beside`` that leaves nothing.
    """
    check_match(backbone, tableau, noise)
    if beside and not 0 <= beside < len(noise):
        raise ValueError(f"beside is {beside}; it lies between 0 and {len(noise) - 1}")
    stored, device = _stored(memory, tableau.nfe), noise.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if torch.is_grad_enabled() and (
        tableau.A.requires_grad or tableau.tau.requires_grad or noise.requires_grad
    ):
        plan = Plan(backbone.evaluate, condition, stored, beside, on_call, narrow)
        recorded: Any = Replay.apply  # its stubs differ between versions of torch
        final: Tensor = recorded(plan, tableau.A, tableau.tau, noise)
        return final
    with torch.no_grad():
        plan = Plan(backbone.evaluate, condition, on_call=on_call, autocast=narrow)
        player: Play | None = getattr(backbone, "player", None)
        return (player or play)(plan, tableau.A, tableau.tau, noise)


def _stored(memory: Memory, nfe: int) -> int:
    """How many calls keep their activations."""
    if memory in ("store", "recompute"):
        return nfe if memory == "store" else 0
    if not isinstance(memory, int) or isinstance(memory, bool) or memory < 1:
        raise ValueError(f"memory is {memory!r}; allowed: store, recompute, or a number of calls")
    return min(memory, nfe)

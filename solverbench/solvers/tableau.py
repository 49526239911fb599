"""A solver as a lower-triangular table, and the one loop that samples with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from solverbench import tensorfile
from solverbench.errors import SolverBenchError
from solverbench.schedule import NoiseSchedule, Output, Prediction
from solverbench.solvers.base import Setting, Solver, State

FORMAT = "solverbench-tableau-1"
Memory = Literal["store", "recompute"]


class Denoiser(Protocol):
    """What ``sample`` needs of a backbone."""

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


class _Tracer:
    """Stands in for the network: call k returns unit vector k + 1."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.basis = torch.eye(setting.nfe + 1, dtype=torch.float64)
        self.rows: list[Tensor] = []
        self.times: list[Tensor] = []

    def __call__(self, x: State, t: Tensor, t_model: Tensor) -> Prediction:
        if len(self.rows) == self.setting.nfe:
            raise ValueError(f"the solver calls the network more than {self.setting.nfe} times")
        self.rows.append(x)
        self.times.append(t_model)
        return _predict(self.setting, x, self.basis[len(self.rows)], t, t_model)


def _predict(setting: Setting, x: State, raw: State, t: Tensor, t_model: Tensor) -> Prediction:
    schedule = setting.noise_schedule
    model = schedule.alpha(t_model), schedule.sigma(t_model)
    learned = t.requires_grad or t_model.requires_grad
    decoupled = t is not t_model and (learned or not torch.equal(t, t_model))
    convert = (schedule.alpha(t), schedule.sigma(t)) if decoupled else None
    return Prediction(x, raw, setting.output, model, convert)


def trace(solver: Solver) -> Tableau:
    """Run a solver on coefficient rows instead of images.

    Args:
        solver: bound to its setting.

    Returns:
        Its tableau, float64; gradients reach the solver's parameters.

    Raises:
        ValueError: where it does not make exactly the calls it was asked for.
    """
    setting, grid, tracer = solver.setting, solver.grid(), _Tracer(solver.setting)
    start = setting.noise_schedule.prior_std * tracer.basis[0]
    end = solver.integrate(start, grid, tracer)
    if len(tracer.rows) != setting.nfe:
        raise ValueError(f"the solver made {len(tracer.rows)} calls; nfe is {setting.nfe}")
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
    return Tableau(torch.stack([*tracer.rows, end]), torch.stack(tracer.times), grid.t, meta)


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

    def network(x: State, t: Tensor, t_model: Tensor) -> Prediction:
        raw = backbone.evaluate(x, t_model, condition)
        predicted = _predict(solver.setting, x, raw, t, t_model)
        if watch:
            watch(predicted)
        return predicted

    start = solver.setting.noise_schedule.prior_std * noise
    return solver.integrate(start, solver.grid(), network)


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


class _Combine(torch.autograd.Function):
    """sum_k row[k] tensors[k], reading each tensor once and storing nothing but references."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(row, *tensors)
        flat = torch.stack([t.reshape(-1) for t in tensors])
        return (row.to(flat.dtype) @ flat).view_as(tensors[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (row, *tensors) = grads, ctx.saved_tensors
        row_grad = None
        if ctx.needs_input_grad[0]:
            row_grad = torch.stack([(grad * t).sum() for t in tensors]).to(row)
        weights = row.to(grad)
        each = [
            weights[k] * grad if needed else None
            for k, needed in enumerate(ctx.needs_input_grad[1:])
        ]
        return (row_grad, *each)


class _Recompute(torch.autograd.Function):
    """A network call that keeps its two inputs alone and runs again in the backward pass.

    Leaner than ``torch.utils.checkpoint``: the first run builds no graph. The network must be
    frozen and draw nothing at random, as every backbone's is.
    """

    @staticmethod
    def forward(
        ctx: Any, evaluate: Callable[..., Tensor], condition: Any, x: Tensor, t: Tensor
    ) -> Tensor:
        ctx.evaluate, ctx.condition = evaluate, condition
        ctx.save_for_backward(x, t)
        return evaluate(x, t, condition)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            value.detach().requires_grad_(needed)
            for value, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            again = ctx.evaluate(*inputs, ctx.condition)
        learned = [value for value in inputs if value.requires_grad]
        found = iter(torch.autograd.grad(again, learned, grads, allow_unused=True))
        return (None, None, *(next(found) if v.requires_grad else None for v in inputs))


def sample(
    backbone: Denoiser,
    tableau: Tableau,
    noise: Tensor,
    condition: Any = None,
    memory: Memory = "store",
    on_call: Callable[[int], None] | None = None,
) -> Tensor:
    """Turn noise into a sample; the only loop that touches images.

    Args:
        backbone: the network; its parameters should be frozen.
        tableau: the solver.
        noise: unit-variance noise, (B, C, H, W).
        condition: for the network, or None.
        memory: where gradients are recorded: ``store`` keeps the activations of every call,
            ``recompute`` runs each call again in the backward pass. The gradients are equal.
        on_call: told the number of each call before it is made.

    Returns:
        Final state, (B, C, H, W), dtype and device of ``noise``.

    Raises:
        SolverBenchError: where tableau and backbone do not fit.
        ValueError: for an unknown ``memory``.
    """
    if memory not in ("store", "recompute"):
        raise ValueError(f"memory is {memory!r}; allowed: store, recompute")
    check_match(backbone, tableau, noise)
    recorded = torch.is_grad_enabled() and (
        tableau.A.requires_grad or tableau.tau.requires_grad or noise.requires_grad
    )
    combine = _recorded(noise, tableau) if recorded else _preallocated(noise, tableau)
    evaluate = backbone.evaluate
    again: Any = _Recompute.apply  # its stubs differ between versions of torch
    for j in range(tableau.nfe):
        if on_call:
            on_call(j)
        x, t = combine(j, None), tableau.tau[j]
        if recorded and memory == "recompute":
            e = again(evaluate, condition, x, t)
        else:
            e = evaluate(x, t, condition)
        combine(j, e)
    return combine(tableau.nfe, None)


Combiner = Callable[[int, Tensor | None], Tensor]


def _preallocated(noise: Tensor, tableau: Tableau) -> Combiner:
    """Row products over one buffer that holds the noise and every output."""
    rows = tableau.A.detach().to(noise)
    buffer = noise.new_empty(tableau.nfe + 1, noise.numel())
    buffer[0] = noise.reshape(-1)

    def combine(j: int, e: Tensor | None) -> Tensor:
        if e is not None:
            buffer[j + 1] = e.detach().reshape(-1)
            return e
        return (rows[j, : j + 1] @ buffer[: j + 1]).view_as(noise)

    return combine


def _recorded(noise: Tensor, tableau: Tableau) -> Combiner:
    """Row products with gradients to coefficients, outputs and noise."""
    kept: list[Tensor] = [noise]
    rows = tableau.A.to(noise.device)

    def combine(j: int, e: Tensor | None) -> Tensor:
        if e is not None:
            kept.append(e)
            return e
        apply: Any = _Combine.apply  # its stubs differ between versions of torch
        y: Tensor = apply(rows[j, : j + 1], *kept)
        return y

    return combine

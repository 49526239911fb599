"""A whole pass of sampling as one function of coefficients, times and noise, with its gradient.

Forward and backward touch image-sized tensors four times a call: a product of a row with what is
there and a copy on the way out, the same product and an update of rank one on the way back.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from solverbench.stages import stage

Evaluate = Callable[[Tensor, Tensor, Any], Tensor]
Play = Callable[["Plan", Tensor, Tensor, Tensor], Tensor]  # what ``play`` does
Kept = dict[int, tuple[list[Tensor], Tensor]]  # by call: what the output depends on, the output


@dataclass(frozen=True, eq=False)
class Plan:
    """How a pass calls the network.

    Attributes:
        evaluate: ``evaluate(x, t, condition)``, shape and dtype of x.
        condition: of all rows, or None.
        stored: calls whose activations are kept for the backward pass: the last ones, which it
            uses and frees before it runs the others again.
        beside: last rows of the batch that take no gradient.
        on_call: told the number of each call before it is made.
        autocast: type that the network's layers are narrowed to, as where the pass was asked for;
            never the arithmetic between calls.
    """

    evaluate: Evaluate
    condition: Any = None
    stored: int = 0
    beside: int = 0
    on_call: Callable[[int], None] | None = None
    autocast: torch.dtype | None = None

    def call(self, x: Tensor, t: Tensor, rows: slice) -> Tensor:
        """The network's output for some rows of the batch, (b, C, H, W)."""
        condition = self.condition
        whole = rows == slice(None) or condition is None
        with stage("network forward"), self._narrowed(x.device.type):
            e = self.evaluate(x[rows], t, condition if whole else condition[rows])
        return e.to(x.dtype)

    def _narrowed(self, device: str) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device, self.autocast)


def play(plan: Plan, A: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """Samples (B, C, H, W) without gradients.

    Args:
        plan: how the network is called.
        A: coefficients, (N + 1, N + 1), float64.
        tau: times, (N,), float64.
        noise: unit-variance noise, (B, C, H, W).
    """
    with _exactly(noise):
        return played(plan, *moved(A.detach(), tau.detach(), noise), noise.detach())


def played(plan: Plan, rows: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Samples (B, C, H, W) from arguments on one device, as ``moved`` gives them."""
    with _exactly(noise):
        return _forward(plan, rows, times, noise)[0]


def _exactly(noise: Tensor) -> AbstractContextManager[Any]:
    """No autocast between calls."""
    device = noise.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class Replay(torch.autograd.Function):
    """``play`` with gradients to coefficients, times and noise.

    The network must be frozen and draw nothing at random, as every backbone's is: a call that is
    not stored runs again in the backward pass and must give what it gave.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, A: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
        """Samples (B, C, H, W); arguments as those of ``play``."""
        with _exactly(noise):
            rows, times = moved(A, tau, noise)
            final, held, ctx.kept = _forward(plan, rows, times, noise, ctx.needs_input_grad[2])
        ctx.plan, ctx.shape = plan, noise.shape
        ctx.save_for_backward(held, rows, times)
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of A, tau and the noise, None where they are not wanted."""
        with stage("solver algebra"), _exactly(grads[0]):
            return None, *_backward(ctx, grads[0])


def moved(A: Tensor, tau: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients in the type of the states, times in their own; one transfer for both."""
    packed = torch.cat([A.reshape(-1), tau]).to(noise.device)
    return packed[: A.numel()].view_as(A).to(noise.dtype), packed[A.numel() :]


def _forward(
    plan: Plan, rows: Tensor, times: Tensor, noise: Tensor, learns_times: bool = False
) -> tuple[Tensor, Tensor, Kept]:
    """The samples; noise and outputs of the rows that learn, (N + 1, b C H W); kept graphs."""
    num, own = len(times), len(noise) - plan.beside
    held, kept = noise.new_empty(num + 1, noise.numel()), Kept()
    with stage("solver algebra"):
        held[0] = noise.reshape(-1)
        for j in range(num):
            if plan.on_call:
                plan.on_call(j)
            x = (rows[j, : j + 1] @ held[: j + 1]).view_as(noise)
            if j < num - plan.stored:
                e = plan.call(x, times[j], slice(None))
            else:
                kept[j] = _recorded(plan, x[:own], times[j], learns_times)
                e = kept[j][1].detach()
                if plan.beside:
                    e = torch.cat([e, plan.call(x, times[j], slice(own, None))])
            held[j + 1] = e.reshape(-1)
        final = (rows[num] @ held).view_as(noise)
    return final, held[:, : own * math.prod(noise.shape[1:])], kept


def _recorded(plan: Plan, x: Tensor, t: Tensor, learns_times: bool) -> tuple[list[Tensor], Tensor]:
    """One call with its graph, for the rows that learn."""
    x, t = x.detach().requires_grad_(), t.detach().requires_grad_(learns_times)
    with torch.enable_grad():
        e = plan.call(x, t, slice(None) if not plan.beside else slice(len(x)))
    return [x, t] if learns_times else [x], e


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of A, tau and, where it is wanted, the noise."""
    held, rows, times = ctx.saved_tensors
    num, own = len(times), len(grad) - ctx.plan.beside
    shape = (own, *ctx.shape[1:])
    slope = grad[:own].reshape(-1)
    adjoint = rows[num, :, None] * slope
    row_slopes = torch.zeros_like(rows)
    row_slopes[num] = held @ slope
    time_slopes = torch.zeros_like(times)
    for j in reversed(range(num)):
        kept = ctx.kept.pop(j, None)
        if kept is None:
            x = (rows[j, : j + 1] @ held[: j + 1]).view(shape)
            kept = _recorded(ctx.plan, x, times[j], ctx.needs_input_grad[2])
        inputs, e = kept
        del kept
        with stage("network backward"):
            found = _slopes(e, inputs, adjoint[j + 1].view(shape))
        del e
        slope = found[0].reshape(-1)
        row_slopes[j, : j + 1] = held[: j + 1] @ slope
        adjoint[: j + 1].addr_(rows[j, : j + 1], slope)
        if len(found) > 1:
            time_slopes[j] = found[1]
    packed = torch.cat([row_slopes.reshape(-1).to(times), time_slopes]).cpu()
    A_slope, tau_slope = packed[: rows.numel()], packed[rows.numel() :]
    noise_slope = None
    if ctx.needs_input_grad[3]:
        noise_slope = grad.new_zeros(ctx.shape)
        noise_slope[:own] = adjoint[0].view(shape)
    return A_slope.view_as(rows), tau_slope, noise_slope


def _slopes(e: Tensor, inputs: list[Tensor], adjoint: Tensor) -> tuple[Tensor, ...]:
    """Gradients of what a call depends on; zeros where its output does not."""
    if not e.requires_grad:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(e, inputs, adjoint, allow_unused=True, materialize_grads=True)

"""One pass of sampling as one function: its gradients, its operations, what it keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from solverbench.backbones.base import Condition
from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.load import load_backbone
from solverbench.schedule import VPDiscrete, VPLinear
from solverbench.solvers import integrate, sample
from solverbench.solvers.gs import GS
from tests.problems import bound

ROUNDING = 1e-12  # float64; gradients of order 1 pass some hundred operations of 1e-16 each
SETTINGS = ("store", 1, 3, 99, "recompute")


def slopes(problem: Any, memory: Any, nfe: int = 5, run: Any = None) -> list[Tensor]:
    """Samples, gradients of the noise and of every parameter of an untrained GS."""
    solver = bound(GS, problem, nfe)
    z = problem.noise(range(3)).double().requires_grad_()
    if run is None:
        final = sample(problem, solver.tableau(), z, memory=memory)
    else:
        final = run(solver, problem, z)
    final.sin().mean().backward()
    return [final.detach(), z.grad, *(p.grad for p in solver.parameters())]


@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("memory", SETTINGS)
def test_every_memory_gives_the_gradients_of_plain_formulas(memory: object, output: str) -> None:
    """The formulas themselves on images, differentiated by PyTorch, know nothing of tables."""
    plain, found = (slopes(Gaussian(output=output), memory, run=r) for r in (integrate, None))
    for wanted, value in zip(plain, found, strict=True):
        assert float((value - wanted).abs().max()) < ROUNDING * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("memory", SETTINGS)
def test_gradients_through_a_real_network_agree(memory: object) -> None:
    backbone = load_backbone("digits")
    backbone.network.double()
    for wanted, value in zip(slopes(backbone, "store"), slopes(backbone, memory), strict=True):
        assert float((value - wanted).abs().max()) < ROUNDING * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("memory", "again"), [("store", 0), (3, 1), (1, 3), ("recompute", 4)])
def test_calls_that_are_not_kept_run_again(memory: object, again: int) -> None:
    problem = Gaussian()
    with problem.counting() as count:
        sample(
            problem,
            bound(GS, problem, 4).tableau(),
            problem.noise([0]),
            memory=memory,  # type: ignore[arg-type]
        ).sum().backward()
    assert count.calls == 4 + again


def test_nothing_is_kept_where_nothing_learns() -> None:
    """A call that keeps its graph would see gradients enabled."""
    problem, seen = Gaussian(), list[bool]()
    evaluate = problem.evaluate

    def watched(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return evaluate(x, t, condition)

    problem.evaluate = watched  # type: ignore[method-assign]
    with torch.no_grad():
        sample(problem, bound(GS, problem, 3).tableau(), problem.noise([0]))
    sample(problem, bound(GS, problem, 3).tableau().detach(), problem.noise([0]))
    assert seen == [False] * 6


@pytest.mark.parametrize("memory", [0, -1, True, 1.5, "none"])
def test_a_memory_that_is_none_is_refused(memory: object) -> None:
    problem = Gaussian()
    with pytest.raises(ValueError, match="allowed: store, recompute, or a number of calls"):
        sample(problem, bound(GS, problem, 4).tableau(), problem.noise([0]), memory=memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", SETTINGS)
def test_rows_beside_take_no_gradient_and_change_none(memory: object) -> None:
    """Their values are checked with a condition that differs from row to row."""
    backbone, num = load_backbone("cifar16"), 2
    backbone.network.double()
    noise = backbone.noise(range(5)).double()
    labels = torch.tensor([3, 1, 4, 1, 5])
    found = []
    for rows in (5, num):
        solver = bound(GS, backbone, 3)
        z = noise[:rows].clone().requires_grad_()
        final = sample(
            backbone,
            solver.tableau(),
            z,
            Condition(labels[:rows]),
            memory=memory,  # type: ignore[arg-type]
            beside=rows - num,
        )
        final.square().sum().backward()
        found.append((final.detach(), z.grad, [p.grad for p in solver.parameters()]))
    (joint, z_grad, learned), (alone, own, expected) = found
    assert float((joint[:num] - alone).abs().max()) < ROUNDING * float(alone.abs().max())
    assert float((z_grad[:num] - own).abs().max()) < ROUNDING * float(own.abs().max())
    assert not z_grad[num:].any()
    for value, wanted in zip(learned, expected, strict=True):
        assert float((value - wanted).abs().max()) < ROUNDING * max(1.0, float(wanted.abs().max()))
    with torch.no_grad():
        others = sample(
            backbone, bound(GS, backbone, 3).tableau(), noise[num:], Condition(labels[num:])
        )
    assert float((joint[num:] - others).abs().max()) < ROUNDING * float(others.abs().max())


def test_rows_beside_share_the_passes_where_nothing_is_kept() -> None:
    backbone = load_backbone("digits")
    noise, calls = backbone.noise(range(3)), []
    for memory in ("recompute", "store"):
        with backbone.counting() as count:
            sample(backbone, bound(GS, backbone, 2).tableau(), noise, memory=memory, beside=1)  # type: ignore[arg-type]
        calls.append((count.calls, count.rows))
    assert calls == [(2, 6), (4, 6)]


@pytest.mark.parametrize("beside", [-1, 2])
def test_somebody_must_learn(beside: int) -> None:
    problem = Gaussian()
    with pytest.raises(ValueError, match="it lies between 0 and 1"):
        sample(problem, bound(GS, problem, 4).tableau(), problem.noise([0, 1]), beside=beside)


class Counter(TorchDispatchMode):
    """Counts operations on tensors of at least some size; views are none."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.seen, self.paused = size, list[str](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        touched = [v for v in (*args, found) if isinstance(v, Tensor)]
        touched += [v for a in args if isinstance(a, list | tuple) for v in a if torch.is_tensor(v)]
        large = any(v.numel() >= self.size for v in touched)
        if large and not self.paused and not func.is_view:
            self.seen.append(str(func))
        return found

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count inside."""
        self.paused = True
        yield
        self.paused = False


class Opaque(torch.autograd.Function):
    """A network whose own operations are not counted."""

    @staticmethod
    def forward(ctx: Any, counter: Counter, x: Tensor, t: Tensor) -> Tensor:
        with counter.pause():
            ctx.counter = counter
            ctx.save_for_backward(x, t)
            return x * torch.cos(t).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, t = ctx.saved_tensors
        with ctx.counter.pause():
            scale = torch.cos(t).to(x)
            return None, grads[0] * scale, -(grads[0] * x).sum().to(t) * torch.sin(t)


@pytest.mark.parametrize("schedule", [VPLinear(), VPDiscrete(0.00085, 0.012)])
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_a_step_makes_few_operations_on_images_outside_the_network(
    memory: str, schedule: Any
) -> None:
    """Ten calls, forward and backward: four to five a call, their copies, and few at both ends."""
    problem, counter = Gaussian(), Counter(64 * 16)
    problem.schedule = schedule
    problem.evaluate = lambda x, t, condition=None: Opaque.apply(counter, x, t)  # type: ignore[method-assign]
    solver, noise = bound(GS, problem, 10), problem.noise(range(64))
    with counter:
        sample(problem, solver.tableau(), noise, memory=memory).sum().backward()  # type: ignore[arg-type]
    assert len(counter.seen) <= 100, sorted(counter.seen)  # 67 and 87 with torch 2.13
    assert len(counter.seen) >= 40  # the counter sees something


def test_recomputing_keeps_states_and_outputs_alone() -> None:
    """Per call one output is kept; nothing of the network's inside."""
    backbone, kept = load_backbone("digits"), []
    noise = backbone.noise(range(4))
    for nfe in (4, 8):
        sizes = list[int]()

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        tableau = bound(GS, backbone, nfe).tableau().detach()
        tableau.A.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sample(backbone, tableau, noise, memory="recompute").sum()
        kept.append(sum(sizes))
    state = noise.numel() * 4
    assert kept[0] < 6 * state
    assert kept[1] - kept[0] < 4 * (state + 200)  # and the rows of the table


@pytest.mark.parametrize("memory", SETTINGS)
def test_autocast_narrows_the_network_and_nothing_between_its_calls(memory: object) -> None:
    """The network here has no layer that autocast knows, so results are equal to the last bit."""
    problem, found = Gaussian(), []
    for enabled in (False, True):
        solver, z = bound(GS, problem, 4), problem.noise(range(3)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            final = sample(problem, solver.tableau(), z, memory=memory)  # type: ignore[arg-type]
            with torch.no_grad():
                plain = sample(problem, solver.tableau(), z)
        final.sum().backward()
        found.append((final.detach(), plain, z.grad))
    for exact, narrowed in zip(*found, strict=True):
        assert narrowed.dtype == torch.float32
        assert torch.equal(exact, narrowed)


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_a_network_that_looks_at_nothing_has_no_slope(memory: str) -> None:
    problem = Gaussian()
    problem.evaluate = lambda x, t, condition=None: torch.ones_like(x).detach()  # type: ignore[method-assign]
    z = problem.noise([0, 1]).double().requires_grad_()
    tableau = bound(GS, problem, 3).tableau().detach()
    sample(problem, tableau, z, memory=memory).sum().backward()  # type: ignore[arg-type]
    assert torch.allclose(z.grad, tableau.A[3, 0].expand_as(z))


def test_no_noise_is_no_sample() -> None:
    problem = Gaussian()
    problem.evaluate = lambda x, t, condition=None: x  # type: ignore[method-assign]
    none = problem.noise([0])[:0]
    assert sample(problem, bound(GS, problem, 3).tableau().detach(), none).shape == none.shape

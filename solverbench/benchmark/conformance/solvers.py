"""Checks of a solver, on exact mixtures of Gaussians."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark.conformance.checks import Check, Probes, content, demand, run_probes
from solverbench.benchmark.conformance.fitting import trains
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.errors import SolverBenchError
from solverbench.schedule import float64
from solverbench.solvers.base import LearnableSolver, Solver
from solverbench.solvers.tableau import Tableau, integrate, sample

NUM = 8  # samples of a check
REFERENCE_STEPS = 200  # of Runge-Kutta 4: 6e-7 off on the Gaussian backbone, in either frame
LADDER = (20, 40, 80)  # NFE of the refinement, or one more where a solver cannot meet one
FRAMES = ("vp-linear", "ve")
SMOOTH = [0.5] * 4  # wide components: rounding is not amplified by a steep denoiser


def check_solver(name: str) -> list[Check]:
    """Check a solver on an exact mixture of Gaussians, whose sampling has a known answer.

    Args:
        name: registered name.

    Returns:
        A check a requirement; the later ones are left away where no NFE from 4 to 10 is met.

    Raises:
        SolverBenchError: for an unknown name, or a plugin that cannot be imported.
    """
    registry.solvers.get(name)
    accepts = Check("meets some NFE from 4 to 10", False, "")
    try:
        nfe = _first_nfe(name, load_backbone("gaussian"), range(4, 11))
    except Exception as error:
        return [Check(accepts.title, False, " ".join(str(error).split()))]
    found = Check(accepts.title, True, f"NFE {nfe}")
    return [found, *run_probes(_solver_probes(_Subject(name, nfe)))]


def gaussian_error(name: str, nfe: int, frame: str = "vp-linear", **options: Any) -> float:
    """Error of a solver on the exact Gaussian backbone.

    Args:
        name: registered name of the solver.
        nfe: network evaluations.
        frame: of the backbone.
        **options: of the solver.

    Returns:
        Root mean square difference to an accurate solution, in float64; data have scale 1.
    """
    backbone = load_backbone("gaussian", frame=frame)
    tableau = load_solver(name, backbone, nfe, **options).tableau().detach()
    exact = _solution(frame, tableau.meta["t_min"])
    found = sample(backbone, tableau, backbone.noise(range(NUM)).double())
    return float((found - exact).square().mean().sqrt())


@cache
def _solution(frame: str, t_min: float) -> Tensor:
    """Final states (NUM, C, H, W) of d(x / alpha) / d(shat) = eps, by classical Runge-Kutta."""
    backbone = load_backbone("gaussian", frame=frame)
    schedule = backbone.schedule
    start, end = float64(schedule.t_max), float64(t_min)
    share = torch.linspace(0, 1, REFERENCE_STEPS + 1, dtype=torch.float64)
    lam = schedule.lam(start) + (schedule.lam(end) - schedule.lam(start)) * share

    def slope(at: Tensor, y: Tensor) -> Tensor:
        t = schedule.inverse_lam(at)
        return -torch.exp(-at) * backbone.predict(schedule.alpha(t) * y, t).eps

    y = schedule.prior_std * backbone.noise(range(NUM)).double() / schedule.alpha(start)
    for i, h in enumerate(lam.diff()):
        k1 = slope(lam[i], y)
        k2 = slope(lam[i] + h / 2, y + h / 2 * k1)
        k3 = slope(lam[i] + h / 2, y + h / 2 * k2)
        k4 = slope(lam[i + 1], y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return schedule.alpha(end) * y


def _first_nfe(name: str, backbone: Backbone, candidates: Iterable[int]) -> int:
    """The first NFE that a solver meets; SolverBenchError of the last one where there is none."""
    refused = SolverBenchError(f"{name} was asked for no NFE")
    for nfe in candidates:
        try:
            load_solver(name, backbone, nfe)
        except SolverBenchError as error:
            refused = error
        else:
            return nfe
    raise refused


@dataclass(frozen=True)
class _Subject:
    """A solver under test.

    Attributes:
        name: registered name.
        nfe: one that it meets.
    """

    name: str
    nfe: int

    def bound(self, frame: str = "vp-linear", output: str = "x0") -> tuple[Backbone, Solver]:
        """A backbone and the solver made for it."""
        backbone = load_backbone("gaussian", frame=frame, output=output, stds=SMOOTH)
        return backbone, load_solver(self.name, backbone, self.nfe)


def _solver_probes(subject: _Subject) -> Probes:
    solver = subject.bound()[1]
    probes: dict[str, Callable[[], str]] = {
        "names its source": lambda: demand(bool(getattr(solver, "source", "")), solver.source),
        "makes the asked number of calls": lambda: _counted(subject),
        "error vanishes under refinement": lambda: _refined(subject),
        "its table equals its formulas": lambda: _traced(subject),
        "no call uses a later one": lambda: _triangular(subject),
        "works in every frame for every network output": lambda: _frames(subject),
        "same call twice gives the same bits": lambda: _repeated(subject),
        "other batch sizes give the same images": lambda: _batched(subject),
        "keeps shape and dtype": lambda: _shaped(subject),
        "sampling writes nothing to the solver": lambda: _untouched(subject),
        "its table survives a file": lambda: _stored(subject),
    }
    if isinstance(solver, LearnableSolver):
        probes["gradients reach every parameter that is used"] = lambda: _learns(subject)
        probes["its training rule steps and continues from a checkpoint"] = lambda: trains(
            subject.name, subject.nfe
        )
    return probes


def _counted(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    noise = backbone.noise(range(NUM))
    with backbone.counting() as table:
        sample(backbone, solver.tableau().detach(), noise)
    with backbone.counting() as formulas, torch.no_grad():
        integrate(solver, backbone, noise)
    calls = table.calls, formulas.calls
    return demand(calls == (subject.nfe,) * 2, f"{calls[0]} and {calls[1]} of {subject.nfe} calls")


def _refined(subject: _Subject) -> str:
    """Untrained solvers may start poorly, so it is the decrease that counts, from NFE 20 on.

    A solver that declares itself inconsistent is not asked for it, if its flags tell the reader.
    """
    backbone = load_backbone("gaussian")
    counts = [_first_nfe(subject.name, backbone, (n, n + 1)) for n in LADDER]
    errors = [gaussian_error(subject.name, nfe) for nfe in counts]
    shown = ", ".join(f"{e:.1e} at NFE {n}" for e, n in zip(errors, counts, strict=True))
    solver = subject.bound()[1]
    if not solver.consistent:
        told = any("inconsistent" in flag for flag in solver.flags)
        demand(told, "it declares itself inconsistent, but none of its flags says inconsistent")
        return f"not asked of it: it declares itself inconsistent; error {shown}"
    # four times the steps: order 1 gives 4, so 3 leaves room before the asymptotic range
    falls = errors[0] > errors[1] > errors[2] and errors[2] < errors[0] / 3
    return demand(falls, f"error {shown}")


def _traced(subject: _Subject) -> str:
    gaps = []
    for frame in FRAMES:
        backbone, solver = subject.bound(frame)
        noise = backbone.noise(range(NUM)).double()
        with torch.no_grad():
            direct = integrate(solver, backbone, noise)
        gap = (sample(backbone, solver.tableau().detach(), noise) - direct).abs().max()
        gaps.append(float(gap) / backbone.schedule.prior_std)  # states are that large
    # float64 rounding through a few calls; measured at most 3e-13
    return demand(max(gaps) < 1e-12, f"differ by {max(gaps):.1e}")


def _triangular(subject: _Subject) -> str:
    tableau = subject.bound()[1].tableau().detach()
    size = (subject.nfe + 1, subject.nfe + 1)
    demand(tableau.A.shape == size, f"table of {tuple(tableau.A.shape)}; expected {size}")
    above = tableau.A.triu(1).abs().max()
    return demand(float(above) == 0.0, f"largest entry above the diagonal: {float(above):.1e}")


def _frames(subject: _Subject) -> str:
    """What the network gives is converted exactly, so all outputs lead to one sample."""
    gaps = []
    for frame in FRAMES:
        found = []
        for output in ("x0", "eps", "v"):
            backbone, solver = subject.bound(frame, output)
            noise = backbone.noise(range(NUM)).double()
            found.append(sample(backbone, solver.tableau().detach(), noise))
        demand(bool(torch.stack(found).isfinite().all()), f"not finite in frame {frame}")
        gaps += [float((x - found[0]).abs().max()) / backbone.schedule.prior_std for x in found[1:]]
    # conversions at t_min lose about sigma_max / sigma_min = 4e4 of the 16 digits
    return demand(max(gaps) < 1e-8, f"outputs differ by {max(gaps):.1e}")


def _repeated(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    noise = backbone.noise(range(NUM))
    first = sample(backbone, solver.tableau().detach(), noise)
    again = sample(backbone, solver.tableau().detach(), noise)
    new = sample(backbone, subject.bound()[1].tableau().detach(), noise)
    return demand(torch.equal(first, again) and torch.equal(first, new), "three runs compared")


def _batched(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    tableau, noise = solver.tableau().detach(), backbone.noise(range(NUM))
    whole = sample(backbone, tableau, noise)
    parts = torch.cat(
        [sample(backbone, tableau, part) for part in torch.split(noise, [1, NUM - 1])]
    )
    gap = float((whole - parts).abs().max() / whole.abs().max())
    return demand(gap < 1e-5, f"differ by {gap:.1e} in float32")  # matrix products may regroup


def _shaped(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    tableau, noise = solver.tableau().detach(), backbone.noise(range(NUM))
    for given in (noise, noise.double()):
        found = sample(backbone, tableau, given)
        demand(found.shape == given.shape, f"{tuple(found.shape)} from {tuple(given.shape)}")
        demand(found.dtype == given.dtype, f"{found.dtype} from {given.dtype}")
    return f"{tuple(noise.shape)}, float32 and float64"


def _untouched(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    before = content(vars(solver))
    with torch.no_grad():
        integrate(solver, backbone, backbone.noise(range(NUM)))
    sample(backbone, solver.tableau().detach(), backbone.noise(range(NUM)))
    after = content(vars(solver))
    changed = sorted(key for key in after if after[key] != before.get(key))
    return demand(before == after, f"changed: {', '.join(changed) or 'nothing'}")


def _stored(subject: _Subject) -> str:
    backbone, solver = subject.bound()
    tableau, noise = solver.tableau().detach(), backbone.noise(range(NUM))
    with tempfile.TemporaryDirectory() as folder:
        loaded = Tableau.load(tableau.save(Path(folder) / "tableau.safetensors"))
    equal = torch.equal(sample(backbone, tableau, noise), sample(backbone, loaded, noise))
    return demand(equal, f"{tableau.A.numel() + tableau.tau.numel()} numbers, same samples")


def _learns(subject: _Subject) -> str:
    """Parameters are moved a little first: at a symmetric start some gradients vanish."""
    backbone, solver = subject.bound()
    assert isinstance(solver, LearnableSolver)
    rng = torch.Generator().manual_seed(0)
    for parameter in solver.parameters():
        drawn = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.data += 1e-3 * drawn.to(parameter)
    found = sample(backbone, solver.tableau(), backbone.noise(range(NUM)).double())
    found.square().mean().backward()  # type: ignore[no-untyped-call]
    reached = 0
    for key, parameter in solver.named_parameters():
        grad = parameter.grad
        demand(grad is not None, f"no gradient reaches {key}")
        assert grad is not None
        demand(bool(grad.isfinite().all()), f"the gradient of {key} is not finite")
        reached += int(grad.count_nonzero())
    expected = solver.num_used()
    return demand(reached == expected, f"{reached} of {expected} numbers get a gradient")

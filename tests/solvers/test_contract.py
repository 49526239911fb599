"""What every registered solver must do."""

import math

import pytest
import torch

from solverbench import registry
from solverbench.backbones.gaussian import Gaussian
from solverbench.solvers import MultistepSolver, Setting, integrate, sample
from solverbench.solvers.ddim import DDIM
from solverbench.solvers.dpmpp import DPMpp2M
from solverbench.solvers.heun import DPMSolver2, Heun
from solverbench.solvers.ipndm import IPNDM1, IPNDM2
from solverbench.solvers.unipc import UniPC3
from tests.problems import bound, gap

NAMES = [name for name in registry.solvers.names() if name != "stored"]  # needs a file
FRAMES = ["ve", "vp-linear", "vp-discrete-ldm", "vp-discrete-sd"]
EPS_SOLVERS = [
    name
    for name, kind in registry.solvers.items()
    if issubclass(kind, MultistepSolver) and kind.prediction == "eps"
]


def budget(name: str) -> int:
    return 6 if name == "dpm-solver-2" else 5


def noise(problem: Gaussian, num: int = 3) -> torch.Tensor:
    return problem.noise(range(num)).double()


@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", NAMES)
def test_tableau_samples_what_the_formulas_sample(name: str, frame: str, output: str) -> None:
    """1e-12 of the sums that rounding sees: rows of the table reach 80 / 0.002 and 1 / 0.0066."""
    problem = Gaussian(frame=frame, output=output)
    solver, z = bound(registry.solvers.get(name), problem, budget(name)), noise(problem)
    tableau = solver.tableau().detach()
    with torch.no_grad():
        difference = (sample(problem, tableau, z) - integrate(solver, problem, z)).abs().max()
    assert float(difference) < 1e-12 * max(1.0, float(tableau.A.abs().sum(1).max()))


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_counted_and_are_those_asked_for(name: str) -> None:
    problem, nfe = Gaussian(), budget(name)
    solver = bound(registry.solvers.get(name), problem, nfe)
    with problem.counting() as count:
        integrate(solver, problem, noise(problem))
    assert (count.calls, count.rows) == (nfe, 3 * nfe)
    with problem.counting() as count:
        sample(problem, solver.tableau(), noise(problem))
    assert (count.calls, count.rows) == (nfe, 3 * nfe)


@pytest.mark.parametrize("name", NAMES)
def test_same_call_twice_gives_the_same_bits(name: str) -> None:
    problem = Gaussian()
    solver, z = bound(registry.solvers.get(name), problem, budget(name)), noise(problem).float()
    first, second = (sample(problem, solver.tableau(), z) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    assert bool(torch.isfinite(first).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    problem = Gaussian()
    tableau, z = bound(registry.solvers.get(name), problem, budget(name)).tableau(), noise(problem)
    rows = torch.cat([sample(problem, tableau, row[None]) for row in z])
    assert gap(sample(problem, tableau, z), rows) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_float32_images_keep_their_type_in_the_formulas(name: str) -> None:
    """1e-3: single precision, divided by alpha_T = 0.0066."""
    problem = Gaussian()
    solver, z = bound(registry.solvers.get(name), problem, budget(name)), noise(problem)
    single = integrate(solver, problem, z.float())
    assert single.dtype == torch.float32
    assert gap(single.double(), integrate(solver, problem, z)) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_lower_triangular_and_described(name: str) -> None:
    solver = bound(registry.solvers.get(name), Gaussian(), budget(name))
    tableau = solver.tableau()
    assert bool((tableau.A.triu(1) == 0).all())
    assert tableau.meta["nfe"] == len(tableau.tau) == budget(name)
    assert tableau.meta["options"] == solver.options
    assert tableau.meta["source"]
    assert tableau.meta["title"]
    assert "setting" not in solver.options


@pytest.mark.parametrize("name", EPS_SOLVERS)
def test_analytical_first_step_saves_one_call(name: str) -> None:
    problem = Gaussian()
    solver = bound(registry.solvers.get(name), problem, 4, afs=True)
    assert solver.flags == ("afs",)
    assert solver.grid().num_steps == 5
    assert solver.tableau().nfe == 4
    assert gap(integrate(solver, problem, noise(problem)), sampled(solver, problem)) < 1e-10


def sampled(solver: MultistepSolver, problem: Gaussian) -> torch.Tensor:
    return sample(problem, solver.tableau(), noise(problem))


def test_analytical_first_step_is_the_formula() -> None:
    """For a VP process the first prediction is the noise itself."""
    problem = Gaussian()
    row = bound(IPNDM1, problem, 1, afs=True).tableau().A[0]
    start, middle = problem.schedule, bound(IPNDM1, problem, 2).grid().t[1]
    ratio = start.alpha(middle) / start.alpha(1.0)
    first = ratio + start.sigma(middle) - ratio * start.sigma(1.0)
    assert float(row[0]) == pytest.approx(float(first), rel=1e-11)


def test_data_solvers_refuse_an_analytical_first_step() -> None:
    class Careless(DPMpp2M):
        def __init__(self, setting: Setting) -> None:
            MultistepSolver.__init__(self, setting, afs=True)

    with pytest.raises(ValueError, match="predicts data; afs needs noise"):
        bound(Careless, Gaussian(), 4)


def test_ddim_and_ipndm_1_give_the_same_images_with_an_analytical_first_step() -> None:
    problem = Gaussian()
    pair = [sampled(bound(kind, problem, 4, afs=True), problem) for kind in (DDIM, IPNDM1)]
    assert gap(*pair) < 1e-11


@pytest.mark.parametrize("frame", FRAMES)
def test_error_vanishes_under_refinement(frame: str) -> None:
    problem = Gaussian(frame=frame)
    z = noise(problem)
    exact = integrate(bound(UniPC3, problem, 400), problem, z)
    coarse, fine = (gap(integrate(bound(IPNDM2, problem, n), problem, z), exact) for n in (50, 100))
    assert math.log2(coarse / fine) > 1.5


def test_heun_refuses_an_even_number_of_calls() -> None:
    with pytest.raises(ValueError, match="heun needs") as error:
        bound(Heun, Gaussian(), 6)
    assert str(error.value) == (
        "heun needs an odd nfe (two calls per step, one for the last); got 6. Use 5 or 7."
    )


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (Heun, {"final_euler": False}, "heun with final_euler=False"),
        (DPMSolver2, {}, "dpm-solver-2"),
    ],
)
def test_two_call_steps_refuse_an_odd_number_of_calls(
    kind: type, options: dict[str, bool], name: str
) -> None:
    with pytest.raises(ValueError, match="Use 4 or 6") as error:
        bound(kind, Gaussian(), 5, **options)
    assert str(error.value).startswith(f"{name} needs an even nfe (two calls per step); got 5.")
    with pytest.raises(ValueError, match=r"Use 2\."):
        bound(kind, Gaussian(), 1, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unipc-3", {"variant": "bh3"}, "variant is 'bh3'; allowed: bh1, bh2"),
        ("dpm-solver-2", {"r": 0.0}, "r is 0.0; it must lie in"),
        ("deis-3", {"sigma_min": 90.0, "sigma_max": 80.0}, "must be positive and increase"),
        ("gs", {"history": 0}, "history must be at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bound(registry.solvers.get(name), Gaussian(), budget(name), **options)


def test_nfe_must_be_positive() -> None:
    with pytest.raises(ValueError, match="nfe is a whole number from 1 to 4096; got 0"):
        bound(DDIM, Gaussian(), 0)

"""Solvers against numbers of the reference implementations, 1e-9 relative to the largest entry."""

import re

import pytest
import torch

from solverbench import registry
from solverbench.schedule import VE, VPLinear, nodes
from solverbench.solvers import integrate
from solverbench.solvers.adams import lagrange, quadrature
from solverbench.solvers.deis import DEIS3
from solverbench.solvers.heun import DPMSolver2, Heun
from tests.problems import Problem, bound, edm, edm_ve, gap, golden, latent, line, solve, vectors

TOLERANCE = 1e-9  # float64, formulas rearranged
GAS = {
    "logSNR": "logsnr",
    "time_uniform": "time-uniform",
    "time_quadratic": "time-quadratic-sqrt",
    "gits": "gits-sd",
}
LD3 = {
    "edm": "edm",
    "logSNR": "logsnr",
    "time_uniform": "time-uniform",
    "time_quadratic": "time-quadratic-shifted",
    "gs_init_grid": "time-uniform",
}


def finals(name: str) -> list[str]:
    return [key for key in golden(name) if key.endswith("__final")]


def found(pattern: str, key: str) -> str:
    match = re.search(pattern, key)
    assert match
    return match[1]


def problem_of(key: str) -> Problem:
    if key.startswith("ve__"):
        return edm_ve()
    if key.startswith(("edm", "vp")):
        return edm(float(found(r"eps([\d.]+)_", key)))
    problem = latent(key.split("_")[0])
    if "uncond" in key:
        problem.condition = None
    return problem


@pytest.mark.parametrize("key", finals("solvers_unipc_ipndm"))
def test_unipc_and_ipndm_meet_the_reference(key: str) -> None:
    family, grid = found(r"_(unipc|ipndm)_", key), GAS[key.split("__")[1]]
    order, nfe = found(r"_o(\d)", key), int(found(r"nfe(\d+)", key))
    options = {"variant": found("(bh[12])", key)} if family == "unipc" else {}
    solver = registry.solvers.get(f"{family}-{order}")
    final = solve(solver, problem_of(key), nfe, schedule=grid, **options)
    assert gap(final, golden("solvers_unipc_ipndm")[key]) < TOLERANCE


@pytest.mark.parametrize("key", finals("solvers_ve_dpmpp"))
def test_ve_and_dpmpp_meet_the_reference(key: str) -> None:
    family = found(r"(unipc|dpmpp|ipndm)", key)
    order, nfe, grid = found(r"_o(\d)", key), int(found(r"nfe(\d+)", key)), key.split("__")[-3]
    if "dpmpp_o3__lof" in key:
        grid = "gs_init_grid"
    options: dict[str, object] = {}
    if family == "unipc":
        options["variant"] = found("(bh[12])", key)
    if family == "dpmpp":
        options["lower_order_final"] = "nolof" not in key and "lof0" not in key
    name = f"{family}-{order}" + ("m" if family == "dpmpp" else "")
    solver = registry.solvers.get(name)
    final = solve(solver, problem_of(key), nfe, schedule=LD3[grid], **options)
    assert gap(final, golden("solvers_ve_dpmpp")[key]) < TOLERANCE


@pytest.mark.parametrize(
    "key", [key for key in golden("solvers_ve_dpmpp") if "__timesteps__" in key]
)
def test_grids_of_the_reference_solvers_are_ours(key: str) -> None:
    frame, _, grid, nfe = key.split("__")
    schedule = VE() if frame == "ve" else VPLinear(t_min=float(frame.removeprefix("vp_eps")))
    computed = nodes(schedule, int(nfe.removeprefix("nfe")), LD3[grid])
    assert gap(computed, golden("solvers_ve_dpmpp")[key]) < 1e-11


def solver_of(name: str) -> tuple[type, dict[str, object]]:
    special = {
        "heun_always_corrected": (Heun, {"final_euler": False}),
        "dpm_solver_2": (DPMSolver2, {}),
        "deis_tab_3": (DEIS3, {}),
        "ddim": (registry.solvers.get("ddim"), {}),
    }
    if name in special:
        return special[name]
    if name.startswith("unipc"):
        _, order, variant = name.split("_")
        return registry.solvers.get(f"unipc-{order}"), {"variant": variant}
    if name.startswith("dpmpp"):
        kind = name.removesuffix("_no_lower_final").replace("_", "-")
        final = not name.endswith("_no_lower_final")
        return registry.solvers.get(kind), {"lower_order_final": final}
    return registry.solvers.get(name.replace("_variable", "").replace("_", "-")), {}


CASES = [(run, name) for run, solvers in vectors()["runs"].items() for name in solvers]


@pytest.mark.parametrize(("run", "name"), CASES)
def test_solver_meets_the_vectors(run: str, name: str) -> None:
    frame, grid, num = run.split("/")
    schedule = {"edm_rho7": "edm"}.get(grid, grid.replace("_", "-"))
    kind, options = solver_of(name)
    nfe = int(num) * (2 if kind in (Heun, DPMSolver2) else 1)
    problem, z = line({"ve": "ve", "vp": "vp-linear"}[frame])
    solver = bound(kind, problem, nfe, schedule=schedule, **options)
    assert gap(integrate(solver, problem, z).flatten(), vectors()["runs"][run][name]) < TOLERANCE


def test_denoiser_meets_the_vectors() -> None:
    for key, row in vectors()["denoiser_check"].items():
        problem, _ = line()
        x = torch.tensor(row["x"], dtype=torch.float64)[:, None, None, None]
        t = torch.tensor(float(key.removeprefix("ve_sigma_")), dtype=torch.float64)
        assert gap(problem.evaluate(x, t).flatten(), row["D"]) < TOLERANCE


def test_deis_coefficients_meet_the_vectors() -> None:
    problem, _ = line()
    solver = DEIS3(
        bound(DEIS3, problem, 4).setting, schedule="edm", sigma_min=0.002, sigma_max=80.0
    )
    for i, row in enumerate(vectors()["deis_tab_coefficients_ve_edm_rho7_4"]):
        assert gap(solver.weights(i, len(row), solver.grid()), row) < TOLERANCE


def test_adams_weights_meet_the_vectors() -> None:
    """As shares of the step, on shat 80, 40, 15 -> 5."""
    known = torch.tensor([15.0, 40.0, 80.0], dtype=torch.float64)
    s, ds = quadrature(known[0], torch.tensor(5.0, dtype=torch.float64), 4)
    weights = lagrange(known, s) @ ds / -10
    assert gap(weights, vectors()["adams_weights_80_40_15_to_5"]) < TOLERANCE

import json
import os
import subprocess
import sys
from typing import Any

import pytest

AB2 = '''
"""Adams-Bashforth of order 2, in the slope of x / alpha against sigma / alpha."""

from solverbench.solvers import MultistepSolver


class AB2(MultistepSolver):
    source = "Hairer, Norsett, Wanner (1993), Solving ODEs I, III.5"
    order = 2
    prediction = "eps"

    def update(self, x, i, grid, history):
        noise_level = grid.sigma / grid.alpha
        steps = noise_level.diff()
        slope = history[-1]
        if len(history) > 1:
            slope = slope + steps[i] / (2 * steps[i - 1]) * (history[-1] - history[-2])
        return grid.alpha[i + 1] * (x / grid.alpha[i] + steps[i] * slope)


class Careless(AB2):
    """Remembers predictions between runs."""

    def update(self, x, i, grid, history):
        self.seen = getattr(self, "seen", 0) + 1
        return super().update(x, i, grid, history)


class Wrong(AB2):
    """Forgets half of its last step, so it is of order 0."""

    def update(self, x, i, grid, history):
        end = super().update(x, i, grid, history)
        return end if i < grid.num_steps - 1 else (x + end) / 2 + 0.01 * x


class Greedy(AB2):
    """Calls the network once too often."""

    def integrate(self, x, grid, network):
        network(x, grid.t[0], grid.t[0])
        return super().integrate(x, grid, network)
'''

METADATA = "Metadata-Version: 2.1\nName: ab2\nVersion: 0.1\n"

ENTRY_POINTS = """
[solverbench.solvers]
ab2 = ab2:AB2
careless = ab2:Careless
wrong = ab2:Wrong
greedy = ab2:Greedy
absent = no_such_module:Nothing
"""

PROBE = """
import dataclasses, json, math, sys
from solverbench import registry
from solverbench.benchmark.conformance import check_solver, gaussian_error
checks = {name: [dataclasses.asdict(c) for c in check_solver(name)]
          for name in ("ab2", "careless", "wrong", "greedy")}
order = {f: math.log2(gaussian_error("ab2", 160, frame=f)
                      / gaussian_error("ab2", 320, frame=f)) for f in ("vp-linear", "ve")}
try:
    registry.solvers.get("absent")
except Exception as error:
    absent = f"{type(error).__name__}: {error}"
package = registry.solvers.package("ab2")
json.dump({"checks": checks, "order": order, "absent": absent, "package": package}, sys.stdout)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a fresh process finds where the package lies on its path, with nothing edited."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "ab2.py").write_text(AB2)
    facts = folder / "ab2-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(METADATA)
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def failed(found: Any, name: str) -> set[str]:
    return {check["title"] for check in found["checks"][name] if not check["passed"]}


def test_a_plugin_is_known_by_its_entry_point_and_conforms(found: Any) -> None:
    assert failed(found, "ab2") == set()
    assert found["package"] == "ab2 0.1"


@pytest.mark.parametrize("frame", ["vp-linear", "ve"])
def test_the_plugin_converges_at_order_two_in_both_frames(found: Any, frame: str) -> None:
    # the start with one Euler step and finite steps leave the rate a little below 2
    assert found["order"][frame] == pytest.approx(2, abs=0.12)


def test_a_plugin_that_remembers_is_caught(found: Any) -> None:
    assert failed(found, "careless") == {"sampling writes nothing to the solver"}


def test_a_plugin_that_does_not_converge_is_caught(found: Any) -> None:
    assert failed(found, "wrong") == {"error vanishes under refinement"}


def test_a_plugin_that_calls_too_often_is_caught(found: Any) -> None:
    assert "makes the asked number of calls" in failed(found, "greedy")


def test_a_plugin_that_cannot_be_imported_is_one_line_with_its_package(found: Any) -> None:
    assert found["absent"] == (
        "SolverBenchError: solver 'absent' of ab2 0.1 cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )

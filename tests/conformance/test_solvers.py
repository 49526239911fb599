import pytest

from solverbench import registry
from solverbench.benchmark.conformance import check_solver, gaussian_error
from solverbench.errors import SolverBenchError

FROM_FILES = {"stored"}  # tried with a file in tests/solvers


@pytest.mark.parametrize("name", sorted(set(registry.solvers.names()) - FROM_FILES))
def test_every_registered_solver_conforms(name: str) -> None:
    checks = check_solver(name)
    assert len(checks) > 10
    assert [c for c in checks if not c.passed] == []


def test_a_name_that_nothing_carries_is_an_error_and_not_a_failed_check() -> None:
    with pytest.raises(SolverBenchError, match="unknown solver 'dpmpp2m'; did you mean 'dpmpp-2m'"):
        check_solver("dpmpp2m")


@pytest.mark.parametrize("frame", ["vp-linear", "ve"])
def test_the_gaussian_error_of_an_accurate_solver_is_tiny_in_both_frames(frame: str) -> None:
    # measured 3e-7 (vp) and 3e-7 (ve); the reference itself is 6e-7 off at most
    assert gaussian_error("unipc-3", 320, frame=frame) < 3e-6

"""The Frechet distance at the size of Inception features beside ``scipy.linalg.sqrtm``."""

import time
import warnings

import pytest
import torch
from torch import Tensor

from solverbench.benchmark.metrics import Moments, Statistics, frechet_distance

DIM, NUM = 2048, 6000
ROUNDS = 2
FASTER = 3.0


def rows(seed: int, num: int = NUM, dim: int = DIM) -> Tensor:
    """Gaussian rows whose deviations fall from 1 to 1 / sqrt(dim)."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1).double() ** -0.5 * (1 + 0.1 * seed)
    return torch.randn(num, dim, generator=rng, dtype=torch.float64) * scale


def by_root(x: Moments, y: Moments) -> float:
    """As EDM's ``fid.py`` has it."""
    linalg = pytest.importorskip("scipy.linalg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of singular matrices
        root = linalg.sqrtm((x.sigma @ y.sigma).numpy())
    traces = float(x.sigma.trace() + y.sigma.trace())
    return float((x.mu - y.mu).square().sum()) + traces - 2 * float(root.trace().real)


def side_by_side(benchmark, work, base) -> tuple[float, float]:
    """Value of ``base``, and its processor time over that of ``work``, in turns, best of each."""
    seconds: dict[str, list[float]] = {"work": [], "base": []}
    values = {}

    def timed(name: str, what) -> None:
        start = time.process_time()
        values[name] = what()
        seconds[name].append(time.process_time() - start)

    def setup() -> tuple[tuple[str, object], dict[str, object]]:
        timed("base", base)
        return ("work", work), {}

    benchmark.pedantic(timed, setup=setup, rounds=ROUNDS)
    ratio = min(seconds["base"]) / min(seconds["work"])
    benchmark.extra_info |= {"seconds": seconds, "ratio": round(ratio, 2)}
    return values["base"], ratio


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor]:
    """Generated and reference rows of full rank."""
    return rows(0), rows(1)


def test_a_distance_of_full_rank_is_much_faster_than_by_a_matrix_root(benchmark, sets) -> None:
    """From the same statistics on both sides."""
    x, y = (Statistics().update(s).moments() for s in sets)
    found = frechet_distance(generated=x, reference=y)
    other, ratio = side_by_side(
        benchmark, lambda: frechet_distance(generated=x, reference=y), lambda: by_root(x, y)
    )
    benchmark.extra_info |= {"algorithm": found.facts["algorithm"]}
    assert found.value == pytest.approx(other, rel=1e-8)  # where both are right
    assert ratio >= FASTER


def test_a_distance_with_its_error_costs_less_than_a_matrix_root(benchmark, sets) -> None:
    """From rows, which the error needs, covariances of both sides included."""
    x, y = sets
    found = frechet_distance(generated=x, reference=y)
    assert found.se is not None
    _, ratio = side_by_side(
        benchmark,
        lambda: frechet_distance(generated=x, reference=y),
        lambda: by_root(*(Statistics().update(s).moments() for s in sets)),
    )
    assert ratio >= 1


def test_a_rank_deficient_distance_is_right_where_the_matrix_root_is_not(benchmark) -> None:
    """Rows with 256 degrees of freedom, turned in 2048 dimensions, keep their distance."""
    x, y = rows(0, NUM, 256), rows(1, NUM, 256)
    truth = frechet_distance(generated=x, reference=y).value
    mix = torch.randn(DIM, 256, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turn = torch.linalg.qr(mix).Q.T
    a, b = (Statistics().update(s @ turn).moments() for s in (x, y))
    found = frechet_distance(generated=a, reference=b)
    other, _ = side_by_side(
        benchmark, lambda: frechet_distance(generated=a, reference=b), lambda: by_root(a, b)
    )
    errors = {"ours": found.value - truth, "root": other - truth}
    benchmark.extra_info |= {"errors": errors, "flags": found.flags}
    assert abs(errors["ours"]) <= 1e-9
    assert abs(errors["root"]) > 100 * abs(errors["ours"])

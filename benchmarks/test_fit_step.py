"""A training step costs its networks' calls, forward and backward, and little more."""

import pytest

from benchmarks.reference import fit_of, gas_bound, gs_bound
from solverbench.solvers.gas import GAS

pytestmark = pytest.mark.timeout(1200)  # on a machine that does other work

GS_LIMIT, GAS_LIMIT = 1.03, 1.10
MEMORIES = ["store", "recompute"]
NFES = [4, 6, 8, 10]
TWICE = 2.0
ROUNDS, RATIO_ROUNDS, QUICK_ROUNDS, QUICK_BATCH, QUICK_NFE = 15, 5, 9, 2, 3


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("nfe", NFES)
def test_a_gs_step_costs_its_network_calls(side_by_side, reference, nfe, memory) -> None:
    """Base: N passes forward and backward to the input; ``recompute``: and N more forward."""
    fit = fit_of(reference, memory, nfe)
    assert side_by_side(fit.advance, gs_bound(fit, memory), ROUNDS) <= GS_LIMIT


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("nfe", NFES)
def test_a_gas_step_costs_the_calls_of_both_networks(
    side_by_side, reference, adversary, nfe, memory
) -> None:
    """Base: student, fresh fakes and the discriminator's passes, called bare."""
    fit = fit_of(reference, memory, nfe, GAS, discriminator=str(adversary))
    assert side_by_side(fit.advance, gas_bound(fit, memory), ROUNDS) <= GAS_LIMIT


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("nfe", NFES)
def test_a_gas_step_beside_a_gs_step(side_by_side, reference, adversary, nfe, memory) -> None:
    """Base: the GS step. The ratio falls with N, for the discriminator's part does not grow.

    Asserted for ``recompute``, where the fakes ride along; with ``store`` the discriminator alone
    takes it above 2 at small N, whatever the engine does: the bound above is met there.
    """
    gas = fit_of(reference, memory, nfe, GAS, discriminator=str(adversary))
    step = fit_of(reference, memory, nfe).advance
    ratio = side_by_side(gas.advance, step, RATIO_ROUNDS)
    assert memory == "store" or ratio <= TWICE


@pytest.mark.quick
@pytest.mark.parametrize("memory", MEMORIES)
def test_quick_gs_step(side_by_side, reference, memory) -> None:
    """Small, for time; compared with the baseline by ``regress.py``."""
    fit = fit_of(reference, memory, QUICK_NFE, batch=QUICK_BATCH)
    side_by_side(fit.advance, gs_bound(fit, memory), QUICK_ROUNDS)


@pytest.mark.quick
def test_quick_gas_step(side_by_side, reference, adversary) -> None:
    """Likewise; of both settings of memory the one with more to go wrong."""
    options = {"discriminator": str(adversary)}
    fit = fit_of(reference, "recompute", QUICK_NFE, GAS, QUICK_BATCH, **options)
    side_by_side(fit.advance, gas_bound(fit, "recompute"), QUICK_ROUNDS)

import pytest

from solverbench import registry
from solverbench.benchmark.conformance import check_schedule


@pytest.mark.parametrize("name", registry.schedules.names())
def test_every_registered_schedule_optimiser_conforms(name: str) -> None:
    assert [check for check in check_schedule(name) if not check.passed] == []

"""A fast run beside an exact one: nothing of one is taken for the other's."""

from pathlib import Path

from solverbench.benchmark.run import run
from solverbench.benchmark.spec import NetworkSpec
from solverbench.benchmark.store import read_records
from solverbench.leaderboards.render import render
from solverbench.leaderboards.tables import series, split
from tests.benchmark.cells import cell


def test_each_network_has_its_own_teacher_set_records_and_rows(tmp_path: Path) -> None:
    exact = cell(metrics=("fd", "fd-teacher"))
    fast = exact.model_copy(update={"network": NetworkSpec(autocast="bfloat16")})
    alone = run(fast, tmp_path / "alone")
    run(exact, tmp_path / "both")
    beside = run(fast, tmp_path / "both")
    assert beside.metrics == alone.metrics
    assert len(list((tmp_path / "both" / "teachers").iterdir())) == 2
    records = read_records(tmp_path / "both")
    (group,) = split(records)
    rows = {"DDIM [network=exact]", "DDIM [network=autocast bfloat16]"}
    assert {row.title for row in series(group)} == rows
    note = "Network run with autocast bfloat16, not exactly: DDIM [network=autocast bfloat16]."
    assert note in render(records, "md")

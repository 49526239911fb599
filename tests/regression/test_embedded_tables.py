"""Rows of the embedded tables, small: a change that moves them has to say so."""

import json
from pathlib import Path

import pytest

from solverbench.benchmark.spec import RunSpec
from tests.regression.cells import GOLDEN, cells, measured

KNOWN = json.loads(GOLDEN.read_text())["cells"]
ALL = dict(cells())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cells find the teacher's samples that an earlier one made."""
    return tmp_path_factory.mktemp("cells")


def test_every_cell_has_its_golden_values_and_no_other_has() -> None:
    assert KNOWN.keys() == ALL.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spec"), ALL.items(), ids=ALL)
def test_a_row_is_what_it_was(name: str, spec: RunSpec, root: Path) -> None:
    """To rounding, or with training to the spread of training seeds; ``cells.py`` says how far."""
    found = measured(spec, root)
    assert found.keys() == KNOWN[name].keys()
    far = {
        metric: (found[metric], golden)
        for metric, golden in KNOWN[name].items()
        if not abs(found[metric] - golden["value"]) <= golden["tolerance"]
    }
    assert far == {}

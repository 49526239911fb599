"""Sheets of the paper filled from small made-up records."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from solverbench.baselines.published import load_published
from solverbench.benchmark.results import Result
from solverbench.benchmark.store import write_record
from solverbench.leaderboards.paper_render import FORMATS, as_printed, render_sheets
from solverbench.leaderboards.paper_tables import Sheet, SheetRow, Slot, fill
from solverbench.leaderboards.shelf import Shelf
from tests.leaderboards.conftest import Make


def shelf(root: Path, records: Sequence[Result]) -> Shelf:
    for record in records:
        write_record(root, record)
    return Shelf([root])


def slot(*candidates: Sequence[Result]) -> Slot:
    return Slot(tuple(tuple(r.spec.key() for r in records) for records in candidates))


def sheet(rows: dict[str, dict[int, Slot]], metrics: tuple[str, ...] = ("fd",)) -> Sheet:
    made = [SheetRow(name, slots, name == "Teacher") for name, slots in rows.items()]
    return Sheet("a title", metrics, tuple(made))


def test_of_several_candidates_the_best_is_shown_and_not_ranked(tmp_path: Path, make: Make) -> None:
    good = [make("ld3-dpmpp", 4, {"fd": 3.0 + s / 10}, seed=s) for s in range(3)]
    bad = [make("ld3-ipndm", 4, {"fd": 9.0 + s / 10}, seed=s) for s in range(3)]
    ours = [make("gs", 4, {"fd": 5.0 + s / 10}, seed=s) for s in range(3)]
    worse = [make("s4s-alt", 4, {"fd": 8.0 + s / 10}, seed=s) for s in range(3)]
    rows = {"Best LD3": slot(bad, good), "GS": slot(ours), "S4S Alt": slot(worse)}
    filled = fill(
        sheet({name: {4: one} for name, one in rows.items()}),
        shelf(tmp_path, [*good, *bad, *ours, *worse]),
    )
    assert filled.cells[0, 4, "fd"].mean == pytest.approx(3.1)  # rounding of the mean
    assert [filled.cells[i, 4, "fd"].rank for i in range(3)] == [0, 1, 2]
    assert filled.num_found == 12
    text = render_sheets([filled], "md", "t", [])
    assert "| GS | **5.10 ± 0.10** |" in text
    assert "| Best LD3 | 3.10 ± 0.10 |" in text


def test_pending_failed_and_unknown_places_say_so(tmp_path: Path, make: Make) -> None:
    teacher, failed = make("teacher", 20, {"fd": 6.0}), make("gs", 4, reason="it | diverged")
    rows = {
        "GS": {4: slot([failed])},
        "S4S Alt": {4: slot([make("s4s-alt", 4)])},
        "Teacher": {4: slot([teacher])},
    }
    filled = fill(sheet(rows, ("fd", "recall")), shelf(tmp_path, [teacher, failed]))
    status = {place: cell.status for place, cell in filled.cells.items()}
    assert status[0, 4, "fd"] == "failed"
    assert status[1, 4, "fd"] == "pending"
    assert status[2, 4, "fd"] == "ok"
    assert (2, 4, "recall") not in status
    text = render_sheets([filled], "md", "t", [])
    assert "1 of 3 cells have a record" in text
    assert r"[1] GS, NFE 4: failed (seed 0): it \| diverged." in text


def test_the_loss_is_read_beside_the_record_or_said_not_to_be_kept(
    tmp_path: Path, make: Make
) -> None:
    kept, lost = make("gs", 4, {"fd": 5.0}), make("gs", 4, {"fd": 6.0}, seed=1)
    found = shelf(tmp_path, [kept, lost])
    curve = '{"iteration": 1, "validation": 0.5}\n{"iteration": 2}\n'
    curve += '{"iteration": 3, "validation": 0.25}\n'
    found.paths[kept.spec.key()].with_suffix(".fit.jsonl").write_text(curve)
    rows = {"kept": {4: slot([kept])}, "lost": {4: slot([lost])}}
    filled = fill(sheet(rows, ("loss",)), found)
    assert filled.cells[0, 4, "loss"].values == (0.25,)
    assert filled.cells[1, 4, "loss"].status == "not kept"
    assert found.curve(kept.spec.key()) == [(1, 0.5), (3, 0.25)]


def test_times_and_memory_are_those_of_the_costs(tmp_path: Path, make: Make) -> None:
    """12.5 s of a fit; 0.00123456 s an image, 1,024 images."""
    record = make("gs", 4, {"fd": 5.0})
    metrics = ("fit-time", "sampling-time")
    filled = fill(sheet({"GS": {4: slot([record])}}, metrics), shelf(tmp_path, [record]))
    assert filled.cells[0, 4, "fit-time"].mean == 12.5 / 60
    assert filled.cells[0, 4, "sampling-time"].mean == 0.00123456 * 1024 / 60


@pytest.mark.parametrize("fmt", FORMATS)
def test_printed_values_stand_without_records_with_bound_and_unit(fmt: str, tmp_path: Path) -> None:
    (value,) = (p for p in load_published("13a") if (p.method, p.metric) == ("LD3", "train-time"))
    assert as_printed(value) == "<1 h"
    rows = {"LD3": {10: Slot((), {"fit-time": value})}}
    filled = fill(sheet(rows, ("fit-time",)), Shelf([tmp_path]))
    text = render_sheets([filled], fmt, "t", [])
    wanted = {"md": "&lt;1 h", "html": "&lt;1 h", "latex": r"\textless{}1 h", "csv": ",1,<,h,"}
    assert wanted[fmt] in text
    assert "pending" not in text


def test_the_first_folder_wins(tmp_path: Path, make: Make) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        write_record(tmp_path / name, make("gs", 4, {"fd": value}))
    key = make("gs", 4).spec.key()
    found = Shelf([tmp_path / "none", tmp_path / "b", tmp_path / "a"]).get(key)
    assert found is not None
    assert found.metrics["fd"] == 2.0

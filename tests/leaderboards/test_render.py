"""Text from records: rounded once, escaped, complete."""

import csv
import io
from collections.abc import Callable

import pytest
from rich.console import Console

from solverbench.benchmark.results import Result
from solverbench.benchmark.spec import Named
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.render import console, render
from tests.leaderboards.conftest import exact

Make = Callable[..., Result]


def test_markdown_shows_spread_rank_status_and_teacher(group: list[Result]) -> None:
    text = render(group, "md", None, exact)
    assert "## cifar16, 2000 samples, protocol 1" in text
    assert "### FD[cifar16] (lower is better)" in text
    assert "| solver | NFE 4 | NFE 6 |" in text
    assert "| DDIM | 50.00 | <ins>30.00</ins> |" in text
    assert "| UniPC (3M) | <ins>13.00</ins> | **7.12** |" in text
    assert "| GS | **7.05 ± 0.07** | failed [1] |" in text
    assert "| Teacher (UniPC (3M), 20 NFE) | 6.15 |  |" in text


def test_markdown_escapes_what_would_break_a_table(group: list[Result]) -> None:
    assert r"- [1] GS, NFE 6: failed (seed 0): loss is not finite \| at iteration 12." in render(
        group, "md"
    )


def test_notes_say_what_a_reader_must_know(group: list[Result]) -> None:
    text = render(group, "md")
    for part in (
        "2000 a cell, seeds 50000 to 51999",
        "FD[cifar16]: moments to the data.",
        "training seeds 0, 1; 12.5 s, 4,800 network rows, 1,656 teacher pairs a cell",
        "sample standard deviation",
        "cpu, 1 thread(s), 1 process(es) at once with solverbench 0.1.0, Python 3.11, torch 2.11;",
        "commit abc; 2026-11-20",
    ):
        assert part in text


def test_costs_are_one_line_a_cell(group: list[Result]) -> None:
    text = render(group, "md")
    assert "| fit s | fit peak MiB | fit rows | pairs | trained numbers |" in text
    assert "| GS | 4 | 0.00123 | 0 | 3 | 4 | 4 | 12.5 | 0 | 4800 | 1656 | 35 |" in text
    assert "| GS | 6 |  |  |  |  |  |  |  |  |  |  |" in text


def test_budgets_say_what_training_took(make: Make) -> None:
    text = render([make("gs", 4, {"fd": 1.0}), make("gs", 6, {"fd": 1.0})], "md")
    assert (
        "- GS: gs, 20 iterations of 24 pairs out of 1400, learning rate 0.001 (constant), distance "
        "l2, weights as the method selects them, training seeds 0; 12.5 s, 4,800 to 7,200 network "
        "rows, 1,656 teacher pairs a cell."
    ) in text


def test_optimised_times_say_by_what_and_at_what_price(make: Make) -> None:
    gits = Named(name="gits", options={"gamma": 1.2})
    text = render([make("unipc-3", 4, {"fd": 1.0}, schedule=gits)], "md")
    assert (
        "- UniPC (3M) [GITS]: times chosen by gits (gamma=1.2); 4,800 network rows a cell."
    ) in text


def test_fit_costs_say_what_they_leave_out(make: Make) -> None:
    learned = make("gs", 4, {"fd": 1.0})
    times = make("unipc-3", 4, {"fd": 1.0}, schedule=Named(name="gits"))
    text = render([learned, times], "md")
    assert (
        "- Fit rows and seconds of learned solvers leave out making the teacher pairs that they "
        "share (2,400 pairs x 20 NFE = 48,000 network rows without guidance), while those of a "
        "schedule optimiser include its warm-up; fit seconds leave out validation, fit rows "
        "include it."
    ) in text
    assert "warm-up" not in render([learned], "md")
    assert "leave out making" not in render([times], "md")


def test_a_pretrained_discriminator_is_named_once_by_its_hash(make: Make) -> None:
    update = {
        "conventions": {"discriminator_sha256": "0123456789ab" + "c" * 52},
        "flags": ("pretrained-discriminator", "afs"),
    }
    text = render([make("gs", n, {"fd": 1.0}).model_copy(update=update) for n in (4, 6)], "md")
    note = "- GS: pretrained discriminator 0123456789ab, its making is not in the fit cost."
    assert text.count(note) == text.count("discriminator") == 1
    assert "- GS: afs." in text


def test_a_reimplementation_is_said_to_be_one(make: Make) -> None:
    line = "- S4S-Alt (re-implementation): written here after the paper, whose authors never"
    assert line in render([make("s4s-alt", 4, {"fd": 1.0})], "md")
    assert "written here" not in render([make("gs", 4, {"fd": 1.0})], "md")


def grids(make: Make) -> list[Result]:
    """UniPC on three grids, one of which failed once, beside DDIM."""
    return [
        make("ddim", 4, {"fd": 9.0, "recall": 0.5}),
        make("unipc-3", 4, {"fd": 3.0, "recall": 0.8}, options={"schedule": "logsnr"}),
        make("unipc-3", 6, {"fd": 1.0, "recall": 0.9}, options={"schedule": "logsnr"}),
        make("unipc-3", 4, {"fd": 2.0, "recall": 0.7}, options={"schedule": "edm"}),
        make("unipc-3", 6, {"fd": 1.5, "recall": 0.95}, options={"schedule": "edm"}),
        make("unipc-3", 4, reason="no such grid", options={"schedule": "torn"}),
    ]


def test_the_best_grid_is_a_view_below_the_logsnr_row(make: Make) -> None:
    text = render(grids(make), "md", None, exact)
    assert (
        "| UniPC (3M) [schedule=logsnr] | <ins>3.00</ins> | **1.00** |"
        "\n| *UniPC (3M), best of 3 grids* | **2.00** [1] | **1.00** |\n"
    ) in text
    assert "schedule=edm]" not in text
    assert (
        "- [1] UniPC (3M), best of 3 grids, NFE 4: UniPC (3M) [schedule=torn]: "
        "failed (seed 0): no such grid."
    ) in text
    assert (
        "- UniPC (3M), best of 3 grids: a view, marked as the row that it takes; at each NFE the "
        "row with the lowest FD[cifar16] of edm, logsnr, torn. Taken: NFE 4 edm, NFE 6 logsnr. "
        "Chosen by the samples that it is measured on, so it flatters. Rows left out here are "
        "ranked too and stand in the CSV."
    ) in text


def test_every_table_shows_the_rows_that_fd_chose(make: Make) -> None:
    text = render(grids(make), "md", ["recall"], exact)
    assert "| *UniPC (3M), best of 3 grids* | <ins>0.700</ins> [1] | <ins>0.900</ins> |" in text


def test_rows_behind_a_view_stay_in_the_csv_and_the_view_is_not_there(make: Make) -> None:
    results = grids(make)
    text = render(results, "csv")
    assert len(list(csv.DictReader(io.StringIO(text)))) == len(results)
    assert "best of" not in text


@pytest.mark.parametrize(
    ("fmt", "title"), [("md", "*Best LD3*"), ("latex", r"\emph{Best LD3}"), ("csv", "")]
)
def test_best_ld3_is_a_view_marked_in_every_format(make: Make, fmt: str, title: str) -> None:
    results = [make("ld3-dpmpp", 4, {"fd": 2.0}), make("ld3-ipndm", 4, {"fd": 1.0})]
    text = render(results, fmt)
    assert title in text
    assert ("Best LD3" in text) == bool(title)


def test_the_terminal_marks_a_view_too(make: Make) -> None:
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(console(grids(make)))
    text = screen.export_text()
    assert "UniPC (3M), best of 3 grids" in text
    assert "schedule=edm" not in text


def test_the_csv_names_the_optimiser_of_times(make: Make) -> None:
    gits = Named(name="gits", options={"gamma": 1.2})
    text = render([make("unipc-3", 4, {"fd": 1.0}, schedule=gits)], "csv")
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["schedule"], line["schedule_options"]) == ("gits", '{"gamma": 1.2}')


def test_times_of_two_machines_are_not_averaged(make: Make) -> None:
    results = [make("gs", 4, {"fd": 1.0}), make("gs", 4, {"fd": 1.0}, seed=1, device="H200")]
    text = render(results, "md")
    assert "cpu, 1 thread(s), torch 2.11 |" in text
    assert "H200, 1 thread(s), torch 2.11 |" in text


def test_rows_with_other_weights_are_warned_of(make: Make) -> None:
    one, two = make("ddim", 4, {"fd": 1.0}), make("gs", 4, {"fd": 1.0})
    new = one.provenance.model_copy(update={"weights_sha256": "a" * 64})
    old = two.provenance.model_copy(update={"weights_sha256": "b" * 64})
    one = one.model_copy(update={"provenance": new})
    two = two.model_copy(update={"provenance": old})
    assert "aaaaaaaaaaaa, bbbbbbbbbbbb. Rows differ in them" in render([one, two], "md")


def test_the_paper_has_a_column_of_its_own(make: Make) -> None:
    results = [
        make("gs", 4, {"fid": 4.567}, backbone="edm-cifar10"),
        make("ddim", 4, {"fid": 60.0}, backbone="edm-cifar10"),
        make("teacher", 20, {"fid": 2.1}, backbone="edm-cifar10"),
    ]
    text = render(results, "md", ["fid"], exact)
    assert "| solver | NFE 4 | paper |" in text
    assert "| GS | **4.57** | 4.41 |" in text
    assert "| DDIM | <ins>60.00</ins> |  |" in text
    assert "| 2.10 (paper 2.03) |" in text
    assert "quoted from arXiv 2510.17699 Table 2a (50000 samples), not measured here" in text
    assert "sample count is another one" in text


def test_latex_is_booktabs_with_every_special_character_escaped(make: Make) -> None:
    results = [
        make("ddim", 4, {"fd": 1.0}, options={"a_b": "50%"}),
        make("ddim", 4, {"fd": 2.0}, options={"a_b": "x&y"}),
        make("gs", 4, reason="path C:\\tmp {x} #1 $2 ~3 ^4 <5>"),
    ]
    text = render(results, "latex", None, exact)
    assert r"DDIM [a\_b=50\%] & \textbf{1.00} \\" in text
    assert r"DDIM [a\_b=x\&y] & \underline{2.00} \\" in text
    assert r"GS & failed$^{1}$ \\" in text
    assert (
        r"C:\textbackslash{}tmp \{x\} \#1 \$2 \textasciitilde{}3 \textasciicircum{}4 "
        r"\textless{}5\textgreater{}" in text
    )
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 2


def test_csv_is_long_and_keeps_full_precision(group: list[Result]) -> None:
    lines = list(csv.DictReader(io.StringIO(render(group, "csv"))))
    assert len(lines) == len(group)
    by_cell = {(line["solver"], line["nfe"], line["seed"]): line for line in lines}
    good = by_cell["unipc-3", "6", "0"]
    assert (good["fd"], good["seconds_per_image"]) == ("7.123456789", "0.00123456")
    bad = by_cell["gs", "6", "0"]
    assert (bad["status"], bad["fd"], bad["peak_bytes"]) == ("failed", "", "")
    assert bad["reason"] == "loss is not finite | at iteration 12"
    assert {line["key"] for line in lines} == {r.spec.key() for r in group}


def test_the_csv_has_the_spread_over_training_seeds_beside_the_error(group: list[Result]) -> None:
    lines = list(csv.DictReader(io.StringIO(render(group, "csv"))))
    found = {(line["solver"], line["nfe"], line["seed"]): line["fd_seed_sd"] for line in lines}
    spread = pytest.approx(0.1 / 2**0.5)  # of 7.0 and 7.1
    assert float(found["gs", "4", "0"]) == float(found["gs", "4", "1"]) == spread
    assert found["ddim", "4", "0"] == found["gs", "6", "0"] == ""


@pytest.mark.parametrize("fmt", ["md", "latex", "csv"])
def test_the_order_of_records_changes_nothing(group: list[Result], fmt: str) -> None:
    assert render(group, fmt) == render(group[::-1], fmt)


def test_groups_have_tables_of_their_own(make: Make) -> None:
    text = render([make("ddim", 4, {"fd": 1.0}), make("ddim", 4, {"fd": 2.0}, version=2)], "md")
    assert text.count("## cifar16") == 2
    assert "protocol 2" in text


def test_the_teacher_alone_is_a_table(make: Make) -> None:
    assert "| Teacher (UniPC (3M), 20 NFE) | 6.15 |" in render(
        [make("teacher", 20, {"fd": 6.15})], "md"
    )


def test_the_terminal_shows_every_row_and_fault(group: list[Result]) -> None:
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(console(group))
    text = screen.export_text()
    for part in ("FD[cifar16]", "7.05 ± 0.07", "failed [1]", "[1] GS, NFE 6: failed", "Teacher"):
        assert part in text


def test_wishes_that_cannot_be_met_are_one_line(group: list[Result]) -> None:
    with pytest.raises(SolverBenchError, match="unknown format 'markdown'"):
        render(group, "markdown")
    with pytest.raises(SolverBenchError, match="unknown metric 'fdd'; did you mean 'fd'"):
        render(group, "md", ["fdd"])
    with pytest.raises(SolverBenchError, match="no records"):
        render([], "md")

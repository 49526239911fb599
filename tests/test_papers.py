"""The commands about the paper, as a user types them."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from solverbench import reporting
from solverbench.baselines import experiments
from solverbench.baselines.experiments import experiment_ids, load_experiment
from solverbench.benchmark.run import run as cell
from solverbench.cli import main
from solverbench.leaderboards.paper_tables import fill
from solverbench.leaderboards.shelf import COMMITTED, Shelf
from solverbench.papers import State, resolve, reuse, sheet_of, state_of

TINY = """
id: tiny
tables: ['6']
title: a small one
question: Does it run?
finding: It does.
plot: {plot}
needs_files: true
embedded: &all
  about: Smoke size.
  core_hours: 0.01
  parts:
    - name: here
      title: digits, small
      recipe: smoke
      change: &small
        fit: {{iterations: 4, train_size: 16, batch: 8, validation_size: 8, lr: 1e-3}}
        teacher: {{nfe: 6}}
        evaluation: {{num_images: 24, batch: 12, metrics: [fd]}}
      nfe: [3]
      metrics: [fd, loss, fit-time]
      beside: {{table: '6'}}
      rows:
        - {{label: GS, solvers: gs, paper: {{method: GS}}}}
        {rows}
        - {{label: Teacher, teacher: true}}
{parts}
published: *all
"""
MOVED = '- {label: "GS\'", transfer: {part: there, row: GS}}'

THERE = """    - name: there
      title: digits, again
      recipe: smoke
      change:
        <<: *small
        backbone: {name: digits, options: {channels_last: false}}
      nfe: [3]
      rows:
        - {label: GS, solvers: gs}
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["paper", *map(str, words)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No records of a developer's own runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Make a small experiment the only one."""

    def made(rows: str = "", parts: str = "") -> Path:
        text = TINY.format(rows=rows, parts=parts, plot="curves")
        lines = (line for line in text.splitlines() if line.strip())
        (tmp_path / "tiny.yaml").write_text("\n".join(lines))
        return tmp_path

    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    load_experiment.cache_clear()
    yield made
    load_experiment.cache_clear()


def test_list_shows_every_experiment_with_its_state() -> None:
    shown = run("list")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == experiment_ids()
    assert all("embedded" in line and "published scale" in line for line in lines[1::2])
    assert "135 printed values" in lines[1]
    six = lines[2 * experiment_ids().index("6") + 1]
    assert "embedded 20 of 20 cells;" in six
    assert "lacks ldm-cin256-v2" in six


def test_a_failed_cell_is_not_pending() -> None:
    """Nothing is left to run where the others failed, and that is said."""
    state = State(0, num_cells=9, num_found=6, num_failed=2, missing=(), needs_gpu=False)
    assert "embedded 6 of 9 cells, 2 failed, 1 pending; published scale can run" in state.text()
    found = state_of(load_experiment("3"), Shelf([COMMITTED]))  # S4S diverges for two seeds
    assert (found.num_found, found.num_failed, found.num_cells) == (24, 2, 26)


@pytest.mark.parametrize("fmt", ["console", "md", "latex", "html"])
def test_show_has_both_numbers(fmt: str) -> None:
    """FID of GS in table 6, and the mean of its three records on digits."""
    shown = run("show", "6", "--format", fmt)
    assert shown.exit_code == 0, shown.output
    assert "7.87" in shown.stdout
    assert "0.91" in shown.stdout
    assert "relativistic" in shown.stdout


def test_csv_has_full_precision_and_the_source_of_printed_values() -> None:
    rows = list(csv.DictReader(io.StringIO(run("show", "6", "--format", "csv").stdout)))
    (gs,) = (r for r in rows if (r["table"][:6], r["row"], r["metric"]) == ("digits", "GS", "fd"))
    assert (gs["paper"], gs["seeds"], gs["status"]) == ("7.87", "3", "ok")
    assert gs["paper_source"] == "arXiv 2510.17699 Table 6"
    shelf, (part, *_) = Shelf([COMMITTED]), resolve(load_experiment("6"), "embedded")
    values = [r.metrics["fd"] for s in part.specs["GS"] if (r := shelf.get(s.key()))]
    assert float(gs["value"]) == pytest.approx(sum(values) / 3, rel=1e-12)  # order of the sum


def test_html_is_a_well_formed_fragment() -> None:
    for name in ("2a", "13"):
        text = run("show", name, "--format", "html").stdout
        root = ElementTree.fromstring(f"<div>{text}</div>")
        widths = {len(row) for row in next(root.iter("table")).iter("tr")}
        assert len(widths) == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    shown = [run("show", name, "--format", "latex").stdout for name in experiment_ids()]
    text = "\\clearpage\n".join(shown)
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage[utf8]{inputenc}\n"
    (tmp_path / "t.tex").write_text(f"{head}\\begin{{document}}\n{text}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("name", ["12", "4"])  # heads of two lines, and of one
def test_latex_has_balanced_braces_and_as_many_cells_as_columns(name: str) -> None:
    text = run("show", name, "--format", "latex").stdout
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    (columns, *_) = (line for line in text.splitlines() if line.startswith(r"\begin{tabular}"))
    num = len(columns.rpartition("{")[2].strip("}"))
    bodies = [line for line in text.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
    wide = [sum(map(int, re.findall(r"multicolumn\{(\d+)\}", line))) for line in bodies]
    ends = [line.count("multicolumn") for line in bodies]
    cells = [line.count("&") - 2 * line.count(r"\&") + 1 for line in bodies]
    assert {c + w - e for c, w, e in zip(cells, wide, ends, strict=True)} == {num}
    assert any(ends) == (r"\cmidrule" in text) == (name == "12")


def test_dry_run_says_what_the_published_scale_lacks() -> None:
    done = run("run", "6", "--scale", "published", "--dry-run")
    assert done.exit_code == 3
    assert "backbone    ldm-imagenet (guidance=2.0, t_min=0.001, device=cuda)" in done.stdout
    assert "missing: ldm-cin256-v2" in done.stdout
    assert "estimate:" in done.stdout
    assert done.stderr.startswith("error: missing: ldm-cin256-v2")
    assert len(done.stderr.splitlines()) == 1


def test_an_experiment_runs_from_cells_to_text_and_figure(install: Callable[..., Path]) -> None:
    """A second run finds everything, and other folders can take the cells over."""
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    folder = install()
    out, words = folder / "out", ("--quiet", "--jobs", 2, "--seeds", 3)
    done = run("run", "tiny", "--out", out, *words)
    assert done.exit_code == 0, done.output
    names = {path.name for path in out.iterdir() if path.name.startswith("tiny-")}
    assert {f"tiny-embedded.{e}" for e in ("md", "tex", "html", "csv", "svg", "png")} <= names
    shelf, (one,) = Shelf([out]), resolve(load_experiment("tiny"), "embedded", out, (3,))
    filled = fill(sheet_of(one), shelf)
    assert filled.num_found == len(filled.sheet.keys) == 2
    assert {cell.status for cell in filled.cells.values()} == {"ok", ""}
    before = {path: path.read_bytes() for path in out.glob("tiny-*")}
    again = run("run", "tiny", "--out", out, *words)
    assert again.stdout == done.stdout
    assert before == {path: path.read_bytes() for path in out.glob("tiny-*")}
    other, spec = folder / "other", one.specs["GS"][0]
    assert [reuse([one], other, shelf, needs_files=True) for _ in range(2)] == [2, 0]
    copied = Shelf([other])
    assert copied.get(spec.key()) == shelf.get(spec.key())
    assert copied.curve(spec.key()) == shelf.curve(spec.key()) != []


def test_a_solver_trained_on_one_network_is_sampled_on_another(
    install: Callable[..., Path],
) -> None:
    """Both are the same weights here, so the samples are too, but for the memory format."""
    root = install(MOVED, THERE) / "out"
    found = resolve(load_experiment("tiny"), "embedded", root, (3,))
    assert [len(one.recipes) for one in found] == [2, 1]
    (source,), (moved,) = found[1].specs["GS"], found[0].specs["GS'"]
    trained, sampled = cell(source, root), cell(moved, root)
    assert sampled.conventions["trained_on"] == "digits"
    assert sampled.conventions["t_eval"] == trained.conventions["t_eval"]
    # rounding of float32 in another memory format moves few of the 8-bit pixels
    assert sampled.metrics["fd"] == pytest.approx(trained.metrics["fd"], rel=1e-2)


def test_records_without_solver_files_do_not_serve_where_these_are_needed(tmp_path: Path) -> None:
    found = resolve(load_experiment("6"), "embedded")
    shelf = Shelf([COMMITTED])
    bare = [one.all_specs[:1] for one in found if shelf.tableau(one.all_specs[0].key()) is None]
    assert reuse(found, tmp_path / "a", shelf, needs_files=False) == 20
    assert reuse(found, tmp_path / "b", shelf, needs_files=True) <= 20 - len(bare)


def test_figures_of_records_alone_are_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    shown = [run("show", "fig7", "--out", tmp_path / name) for name in ("a", "b")]
    assert [one.exit_code for one in shown] == [0, 0]
    files = [(tmp_path / name / "fig7-embedded.svg").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert files[0].lstrip().startswith(b"<?xml")


def test_without_matplotlib_texts_are_written_and_a_line_says_why_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = run("show", "fig7", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "no figure: figures need matplotlib: pip install 'solverbench[figures]'" in done.stderr
    assert (tmp_path / "fig7-embedded.md").exists()


def test_pages_are_those_of_the_commands_with_remarks_at_the_end(tmp_path: Path) -> None:
    made = reporting.studies(COMMITTED.parent)
    assert set(made) < set(experiment_ids())  # some have no record yet
    assert made["6"].text == run("show", "6", "--format", "md").stdout
    assert (made["6"].num_found, made["6"].num_cells) == (20, 20)
    assert reporting.studies(tmp_path) == {}
    (tmp_path / "records").symlink_to(COMMITTED, target_is_directory=True)
    (tmp_path / "remarks").mkdir()
    (tmp_path / "remarks" / "paper-6.md").write_text("### As found\n\n- Both are equal here.\n")
    again = reporting.studies(tmp_path)
    assert again["6"].text.endswith("\n\n### As found\n\n- Both are equal here.\n")
    assert made["5"].text.startswith(again["5"].text)  # which has no remarks in this folder
    assert again.keys() == made.keys()


def test_of_two_records_of_a_cell_the_newer_counts_and_none_that_others_sent(
    tmp_path: Path,
) -> None:
    part, *_ = resolve(load_experiment("6"), "embedded")
    key = part.specs["GS"][0].key()
    path = Shelf([COMMITTED]).paths[key]
    data = json.loads(path.read_text())
    for folder, day in (("a", 3), ("b", 5), ("c", 4), ("community/d", 9)):
        target = tmp_path / folder / path.name
        target.parent.mkdir(parents=True)
        data["provenance"]["created"] = f"2026-12-0{day}T00:00:00+00:00"
        target.write_text(json.dumps(data))
    assert Shelf([tmp_path]).paths[key] == tmp_path / "b" / path.name


def test_a_hand_made_record_changes_the_table_of_its_cell_alone(tmp_path: Path) -> None:
    part, *_ = resolve(load_experiment("6"), "embedded")
    spec = part.specs["GS"][0]
    shelf = Shelf([COMMITTED])
    path = shelf.paths[spec.key()]
    data = json.loads(path.read_text())
    data["metrics"]["fd"] = 100.0
    target = tmp_path / path.relative_to(path.parents[2])
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(data))
    before, after = (fill(sheet_of(part), s) for s in (shelf, Shelf([tmp_path, COMMITTED])))
    changed = {p for p, c in after.cells.items() if c.values != before.cells[p].values}
    assert changed == {(0, 4, "fd")}

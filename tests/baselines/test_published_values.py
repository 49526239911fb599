"""Single values of each table, typed from the paper, and what their records say."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from solverbench.baselines import published
from solverbench.baselines.published import Published, load_published, load_related
from solverbench.benchmark.spec import FitSpec
from solverbench.errors import SolverBenchError

SPOTS = """
2a cifar10 4 fid | DPM++ (3M) | 46.59
2a cifar10 8 fid | UniPC [DMN] | 5.90
2a cifar10 4 fid | GAS | 4.05
2a ffhq 8 fid | iPNDM [DMN] | 11.00
2a ffhq 6 fid | GAS | 3.79
2a afhqv2 10 fid | S4S Alt | 2.18
2a afhqv2 20 fid | Teacher | 2.16
2b lsun-bedroom 4 fid | DPM++ (3M) | 48.82
2b lsun-bedroom 6 fid | UniPC [DMN] | 4.40
2b lsun-bedroom 7 fid | GS | 3.34
2b lsun-bedroom 5 fid | GAS | 4.60
2b imagenet 4 fid | iPNDM [GITS] | 56.00
2b imagenet 4 fid | GAS | 5.38
2b imagenet 10 fid | Teacher | 4.10
2c ms-coco 4 fid | iPNDM (2M) | 17.76
2c ms-coco 7 fid | Best LD3 | 11.83
2c ms-coco 7 fid | S4S | 10.83
2c ms-coco 4 fid | GAS | 14.71
2c ms-coco 8 fid | Teacher | 11.48
3 cifar10 4 fid | S4S | 31.44
3 cifar10 10 lpips | S4S | 0.027
3 cifar10 4 lpips | Our | 0.116
3 ffhq 6 fid | S4S | 11.08
3 ffhq 10 lpips | Our | 0.005
4 ffhq 4 fid | GS | 10.70
4 ffhq 4 loss | GS | 0.116
4 ffhq 4 fid | GAS | 7.86
4 lsun-bedroom 4 fid | GS | 9.64
4 lsun-bedroom 4 loss | GAS | 0.174
5 ffhq 4 fid | w/ theory | 10.70
5 ffhq 10 fid | w/ theory | 2.67
5 ffhq 4 fid | w/o theory | 15.23
5 ffhq 8 fid | w/o theory | 5.50
5 ffhq 10 fid | w/o theory | 4.69
6 imagenet 4 fid | GS | 7.87
6 imagenet 4 fid | GAS (traditional) | 6.49
6 imagenet 4 fid | GAS (relativistic) | 5.38
7a afhqv2 4 fid | DPM-Solver++ | 27.82
7a afhqv2 8 fid | Best LD3 | 2.63
7a afhqv2 4 fid | GAS | 4.48
7a afhqv2 4 fid | GS' from ffhq | 6.54
7a afhqv2 10 fid | GAS' from ffhq | 2.32
7b ffhq 4 fid | DPM-Solver++ | 46.14
7b ffhq 6 fid | S4S Alt | 4.62
7b ffhq 10 fid | GAS | 2.66
7b ffhq 4 fid | GS' from afhqv2 | 16.01
7b ffhq 10 fid | GAS' from afhqv2 | 2.72
8 imagenet 4 fid | GS | 7.87
8 imagenet 4 precision | GS | 0.90
8 imagenet 4 recall | GS | 0.63
8 imagenet 4 density | GAS | 1.20
8 imagenet 4 coverage | GAS | 0.97
9 cifar10 1 coverage | CD, NFE=1 | 0.942
9 cifar10 4 coverage | GS, NFE=4 | 0.963
9 cifar10 20 coverage | Our teacher | 0.971
9 cifar10 4 fid | CD, NFE=4 | 2.99
9 cifar10 20 fid | Our teacher | 2.03
10 ffhq 4 fid | S4S LMS | 17.05
10 ffhq 4 fid | S4S LMS + PC | 45.51
10 ffhq 10 fid | S4S LMS + PC | 4.01
10 ffhq 4 fid | GS | 10.70
10 ffhq 10 fid | GS | 2.67
11 ffhq 1 fid | DPM | 314.95
11 ffhq 4 fid | DPM | 46.14
11 ffhq 1 fid | GS | 147.54
11 ffhq 2 fid | GAS | 60.69
11 ffhq 4 fid | GAS | 7.86
12a cifar10 4 fid | GS 1400 pairs 10000 iterations | 4.35
12a cifar10 10 fid | GS 49000 pairs 20000 iterations | 2.15
12a ffhq 4 fid | GS 1400 pairs 20000 iterations | 10.72
12a ffhq 10 fid | GS 49000 pairs 10000 iterations | 2.70
12a ffhq 10 fid | GS 49000 pairs 20000 iterations | 2.71
12b cifar10 4 fid | GAS 1400 pairs 10000 iterations | 3.98
12b cifar10 6 fid | GAS 49000 pairs 10000 iterations | 2.48
12b ffhq 4 fid | GAS 1400 pairs 10000 iterations | 9.44
12b ffhq 4 fid | GAS 5000 pairs 10000 iterations | 7.83
12b ffhq 6 fid | GAS 49000 pairs 10000 iterations | 3.76
13a cifar10 2 fid | CD | 2.93
13a cifar10 8 train-time | PD on TPU | 8 day
13a cifar10 7 fid | S4S-Alt | 2.52
13a cifar10 10 train-time | LD3 on A100 | <1 h
13a cifar10 6 fid | GS | 2.44
13a cifar10 4 train-time | GAS on H100 | <2 h
13b imagenet 4 fid | LD3 | 9.19
13b imagenet None train-time | LD3 on A100 | <1 h
13b imagenet 4 fid | GS | 7.97
13b imagenet 4 train-time | GS on H100 | <1.5 h
13b imagenet 7 train-time | GS on H100 | <2.5 h
13b imagenet 4 train-time | GAS on H100 | <3 h
14a cifar10 4 train-time | GS 10000 iterations on H100 | 30 min
14a ffhq 10 train-time | GS 10000 iterations on H100 | 95 min
14a afhqv2 8 train-time | GS 10000 iterations on H100 | 80 min
14a cifar10 6 train-time | GAS 10000 iterations on H100 | 100 min
14a afhqv2 10 train-time | GAS 10000 iterations on H100 | 240 min
14b lsun-bedroom 4 train-time | GS 10000 iterations on H100 | 35 min
14b imagenet 7 train-time | GS 10000 iterations on H100 | 135 min
14b ms-coco 5 train-time | GS 1000 iterations on H100 | 60 min
14b imagenet 6 train-time | GAS 10000 iterations on H100 | 245 min
14b ms-coco 7 train-time | GAS 1000 iterations on H100 | 105 min
15a cifar10 4 peak-memory | GS | 17 GB
15a cifar10 10 peak-memory | GS | 34 GB
15a cifar10 4 peak-memory | GAS | 19 GB
15a cifar10 10 peak-memory | GAS | 35 GB
15a cifar10 8 peak-memory | LD3 | 28 GB
15b imagenet 4 peak-memory | GS | 37 GB
15b imagenet 5 peak-memory | GAS | 49 GB
15b imagenet 7 peak-memory | GAS | 66 GB
15b imagenet 6 peak-memory | LD3 | 54 GB
15b imagenet 7 peak-memory | LD3 | 62 GB
16 imagenet 4 sampling-time | UniPC(3M) on H100 | 0.36 min
16 imagenet 5 sampling-time | UniPC(3M) on H100 | 0.46 min
16 imagenet 5 sampling-time | GS on H100 | 0.45 min
16 imagenet 6 sampling-time | GS on H100 | 0.55 min
16 imagenet 7 sampling-time | GS on H100 | 0.64 min
17 cifar10 20 fid | UniPC | 2.03
17 ffhq 20 fid | UniPC | 2.60
17 afhqv2 20 fid | UniPC | 2.16
17 lsun-bedroom 20 fid | UniPC | 3.06
17 imagenet 10 fid | UniPC | 4.10
18 ms-coco 5 fid | IPNDM(2M) [GITS] | 14.10
18 ms-coco 6 fid | IPNDM(2M) [GITS] | 12.08
18 ms-coco 7 fid | IPNDM(2M) [GITS] | 11.80
18 ms-coco 8 fid | IPNDM(2M) [GITS] | 11.48
"""
SIZED = ("12a", "12b", "14a", "14b")  # tables that name the size or the length of the training


def line(p: Published) -> str:
    """A record as the lines above have it."""
    who = p.method
    if p.table in SIZED:
        who += f" {p.fit['train_size']} pairs" if "train_size" in p.fit else ""
        who += f" {p.fit['iterations']} iterations"
    who += f" from {p.trained_on}" if p.trained_on else ""
    who += f" on {p.device}" if p.device else ""
    number = f"{p.bound}{p.printed}" + (f" {p.unit}" if p.unit != "1" else "")
    return f"{p.table} {p.data} {p.nfe} {p.metric} | {who} | {number}"


@pytest.mark.parametrize("spot", SPOTS.strip().splitlines())
def test_a_value_stands_as_printed(spot: str) -> None:
    where = spot.rpartition(" | ")[0]
    found = [text for p in load_published() if (text := line(p)).startswith(f"{where} | ")]
    assert found == [spot]


def test_no_cell_is_there_twice() -> None:
    where = [line(p).rpartition(" | ")[0] for p in load_published()]
    assert len(set(where)) == len(where)


@pytest.mark.parametrize(
    ("metrics", "decimals", "tables"),
    [
        (("fid",), {2}, None),
        (("precision", "recall", "density"), {2}, "8"),
        (("coverage",), {2}, "8"),
        (("coverage",), {3}, "9"),
        (("lpips", "loss"), {3}, None),
        (("train-time",), {0, 1}, "13"),
        (("train-time",), {0}, "14"),
        (("peak-memory",), {0}, "15"),
        (("sampling-time",), {2}, "16"),
    ],
)
def test_decimals_are_those_of_print(
    metrics: tuple[str, ...], decimals: set[int], tables: str | None
) -> None:
    found = [p for p in load_published(tables) if p.metric in metrics]
    assert {p.decimals for p in found} == decimals
    assert all(p.value == float(p.printed) for p in found)


@pytest.mark.parametrize(
    ("table", "units"),
    [
        ("13a", {("fid", "1"), ("train-time", "day"), ("train-time", "h")}),
        ("13b", {("fid", "1"), ("train-time", "h")}),
        ("14", {("train-time", "min")}),
        ("15", {("peak-memory", "GB")}),
        ("16", {("sampling-time", "min")}),
        ("8", {(m, "1") for m in ("fid", "precision", "recall", "density", "coverage")}),
    ],
)
def test_units_are_those_of_print(table: str, units: set[tuple[str, str]]) -> None:
    assert {(p.metric, p.unit) for p in load_published(table)} == units


def test_a_unit_that_a_metric_does_not_have_is_refused() -> None:
    (first, *_) = load_published("15a")
    with pytest.raises(ValueError, match="peak-memory is in GB, not in 'min'"):
        Published.model_validate(first.model_dump() | {"unit": "min"})


def plugins(kind: str) -> set[str]:
    found = importlib.metadata.entry_points(group=f"solverbench.{kind}")
    return {p.name for p in found if p.value.startswith("solverbench.")}


def test_every_name_of_ours_exists() -> None:
    everything = [*load_published(), *load_related()]
    solvers = {name for p in everything for name in (p.solver, p.base) if name}
    assert solvers <= plugins("solvers")
    assert {p.backbone for p in everything if p.backbone} <= plugins("backbones")
    assert {p.schedule for p in everything if p.schedule} <= plugins("schedules")
    kept = {str(p.evaluation["extractor"]) for p in everything if "extractor" in p.evaluation}
    assert kept == {"vgg16-fc2"} <= plugins("extractors")
    assert {key for p in everything for key in p.fit} <= set(FitSpec.model_fields)


def test_methods_without_a_solver_here_are_these() -> None:
    found = {p.method for p in load_published() if p.solver is None}
    assert found == {"Teacher", "Best LD3", "LD3", "CD", "PD", "CD, NFE=1", "CD, NFE=4"}


def test_flags_of_the_papers_tables_are_on_these_rows() -> None:
    def flagged(flag: str) -> set[tuple[str | None, str]]:
        return {(p.table, p.method) for p in load_published() if flag in p.flags}

    assert flagged("other-teacher") == {("2b", "S4S Alt"), ("2c", "S4S")}
    assert flagged("weights-change") == {
        ("9", "CD, NFE=1"),
        ("9", "CD, NFE=4"),
        ("13a", "CD"),
        ("13a", "PD"),
    }
    teachers = {("2a", "Teacher"), ("2b", "Teacher"), ("2c", "Teacher"), ("9", "Our teacher")}
    assert flagged("teacher") == teachers | {("17", "UniPC"), ("18", "IPNDM(2M) [GITS]")}
    assert {table for table, _ in flagged("other-evaluator")} == {"2c", "18"}
    quoted = flagged("quoted")
    assert {table for table, _ in quoted} == {"2a", "2b", "2c", "7a", "7b", "11", "13a", "13b"}
    assert not {method for _, method in quoted} & {"GS", "GAS", "Our", "GS'", "GAS'", "Teacher"}


def test_what_is_not_verified_says_why() -> None:
    everything = [*load_published(), *load_related()]
    doubtful = [p for p in everything if "not-verified" in p.flags]
    assert all(p.note for p in doubtful)
    of_paper = {(p.table, p.data, p.method) for p in doubtful if p.table}
    assert of_paper == {
        ("4", "lsun-bedroom", "GS"),
        ("4", "lsun-bedroom", "GAS"),
        ("13a", "cifar10", "GS"),
        ("13b", "imagenet", "LD3"),
        ("14b", "ms-coco", "GAS"),
    }


def test_teachers_carry_their_conventions() -> None:
    found = [tuple(p.options.values()) for p in load_published("17")]
    pixel = ("logsnr", "bh1", 1e-4)
    assert found[:3] == [pixel] * 3
    assert found[3:] == [("time-uniform", "bh2", 1e-3), ("time-quadratic-sqrt", "bh2", 1e-3)]
    assert {(p.solver, p.schedule) for p in load_published("18")} == {("ipndm-2", "gits-sd")}


def test_a_loss_names_its_distance_and_a_transfer_its_origin() -> None:
    losses = {p.data: p.evaluation["distance"] for p in load_published("4") if p.metric == "loss"}
    assert losses == {"ffhq": "lpips", "lsun-bedroom": "l1"}
    assert {p.trained_on for p in load_published("7a") if p.method.endswith("'")} == {"ffhq"}
    assert {p.trained_on for p in load_published("7b") if p.method.endswith("'")} == {"afhqv2"}


def test_a_number_without_letter_is_all_its_parts() -> None:
    parts = load_published("2a") + load_published("2b") + load_published("2c")
    assert load_published("2") == parts
    assert load_published()[: len(parts)] == parts


@pytest.mark.parametrize("table", ["1", "19", "2d", "", "a"])
def test_an_unknown_table_is_named_with_those_that_exist(table: str) -> None:
    with pytest.raises(SolverBenchError, match=r"unknown table .* All names: 2a, 2b"):
        load_published(table)


@pytest.mark.parametrize(
    ("heads", "values", "fault"),
    [
        ({"nfe": [4, 6]}, "1.0 2.0 3.0", "differ in number"),
        ({"nfe": [4], "metric": ["fid", "lpips"]}, "1.0", "differ in number"),
        ({"nfe": [4]}, "1,0", "no printed number"),
    ],
)
def test_rows_that_do_not_fit_their_heads_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heads: dict[str, list[object]],
    values: str,
    fault: str,
) -> None:
    shared = {"table": "2a", "source": "s", "method": "m", "solver": None, "metric": "fid"}
    part = {"shared": {}, "columns": heads, "rows": [{"values": values}]}
    text = json.dumps({"about": "", "shared": shared, "parts": [part]})
    (tmp_path / "2a.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=fault):
        load_published("2a")

"""Numbers of other papers: counts and sums typed from the review that they come from."""

from collections import Counter
from decimal import Decimal

import pytest

from solverbench.baselines.published import Published, load_related

PAPERS = """
github.com/zju-pi/diff-sampler, 34 760.98
arXiv 2404.14507 (AYS), 1 2.98
arXiv 2405.11326 (GITS) 5 19.99
arXiv 2402.17376 (DMN) 4 42.79
arXiv 2202.05830 (DDSS) 2 12.26
arXiv 2602.12624 (SDM) 3 6.32
arXiv 2310.19075 (Bespoke) 2 4.93
arXiv 2403.01329 (BNS) 3 246.76
arXiv 2310.13268 (DPM-Solver-v3) 2 14.72
arXiv 2405.15506 (LD3) 4 17.85
arXiv 2502.17423 (S4S) 12 52.86
arXiv 2411.06503 (PAS) 3 32.06
arXiv 2408.08822 (PFDiff) 2 155.27
arXiv 2505.21114 (NeuralSolver) 7 144.73
arXiv 2603.11607 (DyWeight) 6 23.35
arXiv 2507.14797 (EPD-Solver) 29 222.02
arXiv 2510.23285 (AdaSDE) 16 134.49
arXiv 2312.00094 (AMED-Solver) 9 68.24
arXiv 2603.17671 (INDIS) 7 64.20
arXiv 2606.08672 (SpanLift) 4 43.05
arXiv 2603.22375 (MTEO) 3 9.30
arXiv 2310.02279 (CTM) 1 1.73
arXiv 2409.19681 (SFD) 3 8.37
"""
SPOTS = """
cifar10 3 fid | Euler | 93.36
cifar10 10 fid | iPNDM-4 | 2.77
cifar10 5 fid | DPM++ (3M) | 24.97
cifar10 3 fid | DEIS-tAB | 56.01
cifar10 10 fid | DPM++ (2M) [AYS] | 2.98
cifar10 6 fid | iPNDM-4 [GITS] | 4.88
cifar10 None train-time | GITS | <1 min
cifar10 25 fid | DDSS | 4.67
imagenet-64 10 fid | Bespoke | 2.2
imagenet-64 16 psnr | BNS | 45 dB
imagenet-64 None parameters | BNS | <200
cifar10 5 fid | S4S Alt | 3.73
ms-coco 5 fid | S4S | 13.26
cifar10 None parameters | PAS | ~12
imagenet-64 4 fid | DDIM + PFDiff | 16.46
cifar10 5 fid | DyWeight | 3.02
lsun-bedroom 9 fid | DyWeight | 3.45
cifar10 3 fid | EPD | 10.40
ffhq 9 fid | EPD-Plugin (iPNDM) | 3.53
lsun-bedroom 9 fid | EPD | 5.01
None None train-time | EPD | 4.7 min
imagenet-64 7 fid | AdaSDE | 5.26
cifar10 9 fid | AMED-Plugin (iPNDM) | 2.63
afhqv2 3 fid | INDIS | 10.15
cifar10 3 fid | SpanLift | 5.69
imagenet-64 None fid | MTEO | 3.81
cifar10 1 fid | CTM | 1.73
cifar10 4 fid | SFD | ~3.2
"""


def line(p: Published) -> str:
    number = f"{p.bound}{p.printed}" + (f" {p.unit}" if p.unit != "1" else "")
    return f"{p.data} {p.nfe} {p.metric} | {p.method} | {number}"


@pytest.mark.parametrize("paper", PAPERS.strip().splitlines())
def test_a_paper_has_its_count_and_its_sum(paper: str) -> None:
    source, count, total = paper.rsplit(" ", 2)
    found = [p for p in load_related() if p.source.startswith(source)]
    assert (len(found), str(sum(Decimal(p.printed) for p in found))) == (int(count), total)


def test_no_paper_is_forgotten() -> None:
    assert len({p.source for p in load_related()}) == len(PAPERS.strip().splitlines())
    assert len(load_related()) == 162


@pytest.mark.parametrize("spot", SPOTS.strip().splitlines())
def test_a_value_stands_as_in_the_review(spot: str) -> None:
    assert Counter(line(p) for p in load_related())[spot] == 1


def flags(method: str) -> set[str]:
    return {flag for p in load_related() if p.method.startswith(method) for flag in p.flags}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("EPD", {"afs", "trained-on-metric-features", "parallel"}),
        ("AdaSDE", {"afs", "trained-on-metric-features", "parallel", "stochastic"}),
        ("DyWeight", {"afs", "trained-on-metric-features", "other-teacher", "not-verified"}),
        ("AMED-Solver", {"afs", "extra-network", "per-sample"}),
        ("INDIS", {"other-teacher", "extra-network", "per-sample"}),
        ("DDSS", {"trained-on-metric-features", "stochastic"}),
        ("MTEO", {"conditioning-change", "not-verified"}),
        ("CTM", {"weights-change"}),
    ],
)
def test_flags_say_what_a_method_does_differently(method: str, expected: set[str]) -> None:
    assert flags(method) == expected


def test_numbers_with_a_question_mark_are_not_verified() -> None:
    found = {(p.method, p.printed) for p in load_related() if "not-verified" in p.flags}
    marked = {
        *(("DyWeight", v) for v in ("8.16", "2.13", "2.77", "3.82", "3.45")),
        *(("MTEO", v) for v in ("2.50", "2.99", "3.81")),
        ("AMED-Plugin", "10.43"),
    }
    assert marked <= found


def test_solvers_of_ours_stand_beside_these_methods() -> None:
    found = {(p.method, p.solver, p.schedule) for p in load_related() if p.solver}
    assert found == {
        ("Euler", "ddim", None),
        ("DDIM", "ddim", None),
        ("DPM++ (3M)", "dpmpp-3m", None),
        ("UniPC-3", "unipc-3", None),
        ("iPNDM-4", "ipndm-4", None),
        ("DPM++ (2M) [AYS]", "dpmpp-2m", "ays"),
        ("iPNDM-4 [GITS]", "ipndm-4", "gits"),
        ("UniPC [DMN]", "unipc-3", "dmn"),
        ("S4S Alt", "s4s-alt", None),
        ("S4S", "s4s", None),
    }


def test_none_of_them_is_of_a_table_of_the_paper() -> None:
    assert {p.table for p in load_related()} == {None}

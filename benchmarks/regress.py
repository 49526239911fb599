"""Compare the ratios of a benchmark run with the committed ones; needs Python alone.

    pytest benchmarks -m quick --benchmark-json=figures.json
    python benchmarks/regress.py figures.json --only test_quick            # 1 where one worsened
    python benchmarks/regress.py figures.json --only test_quick --update   # ratios from now on

Of several files the median counts. Without ``--only`` they must be of all benchmarks: a figure that
is missing fails.

A figure is a ratio over a bound that was measured in the same run, less is better; no seconds or
bytes of different runs are compared. Benchmarks leave theirs in ``extra_info["figures"]``, by kind.
Ratios over unlike work hold for one family of processors: on another they are not judged.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.json")
# By how much a ratio may exceed its baseline, relatively: time over a bound of the same kind of
# work, over unlike work (a loaded machine slows the two unequally), bytes.
MARGINS = {"time": 0.08, "unlike": 0.3, "bytes": 0.02}
DIGITS = 4

Figures = dict[str, dict[str, float]]  # kind to ratio, by benchmark


def median_of(runs: list[dict[str, Any]]) -> Figures:
    """The median ratio of some runs, of the runs that have it."""
    many = [figures_of(run) for run in runs]
    found: Figures = {}
    for name in {name for one in many for name in one}:
        kinds = {kind for one in many for kind in one.get(name, {})}
        held = {k: [one[name][k] for one in many if k in one.get(name, {})] for k in kinds}
        found[name] = {kind: statistics.median(values) for kind, values in held.items()}
    return found


def figures_of(run: dict[str, Any]) -> Figures:
    """The ratios of a run as pytest-benchmark writes it.

    Raises:
        ValueError: for a kind without a margin.
    """
    found: Figures = {}
    for benchmark in run["benchmarks"]:
        ratios = benchmark["extra_info"].get("figures", {})
        for kind in ratios.keys() - MARGINS.keys():
            raise ValueError(
                f"{benchmark['fullname']} has a figure of kind {kind!r}; "
                f"allowed: {', '.join(MARGINS)}"
            )
        if ratios:
            found[benchmark["fullname"]] = {k: float(f"{v:.{DIGITS}g}") for k, v in ratios.items()}
    return found


def worsened(baseline: Figures, found: Figures, margins: dict[str, float]) -> list[str]:
    """A line for each ratio of the baseline that grew by more than its margin, or is missing.

    A benchmark without a baseline is new and passes.
    """
    lines = []
    for name, ratios in sorted(baseline.items()):
        for kind, before in sorted(ratios.items()):
            now, margin = found.get(name, {}).get(kind), margins[kind]
            if now is None:
                lines.append(f"{name}: no figure of kind {kind}; the baseline has {before:g}")
            elif not now <= before * (1 + margin):  # NaN is no improvement
                lines.append(
                    f"{name}: {kind} {now:g}, baseline {before:g}, allowed {100 * margin:g} % more"
                )
    return lines


def chosen(figures: Figures, only: str) -> Figures:
    """Those whose name holds ``only``."""
    return {name: ratios for name, ratios in figures.items() if only in name}


def updated(baseline: dict[str, Any], runs: list[dict[str, Any]], only: str) -> dict[str, Any]:
    """The baseline with the chosen ratios of some runs in place of its own; others stay."""
    run = runs[-1]
    about = {
        "date": run["datetime"][:10],
        "torch": run["machine_info"].get("torch", ""),
        "processor": processor(run),
    }
    before: Figures = baseline.get("figures", {})
    if about["processor"] != baseline.get("processor"):
        before = like_for_like(before)  # the others belonged to that processor
    kept = {name: ratios for name, ratios in before.items() if only not in name}
    return about | {"figures": dict(sorted((kept | chosen(median_of(runs), only)).items()))}


def processor(run: dict[str, Any]) -> str:
    """Maker and family of the processor of a run."""
    cpu = run["machine_info"].get("cpu", {})
    return f"{cpu.get('vendor_id_raw', '')} family {cpu.get('family', '')}"


def like_for_like(figures: Figures) -> Figures:
    """Without the ratios over unlike work, which depend on the processor."""
    return {
        name: kept
        for name, ratios in figures.items()
        if (kept := {kind: ratio for kind, ratio in ratios.items() if kind != "unlike"})
    }


def main(words: list[str] | None = None) -> int:
    """Compare or update; the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("figures", type=Path, nargs="+", help="what --benchmark-json wrote")
    parser.add_argument("--only", default="", help="benchmarks whose name holds this text")
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    given = parser.parse_args(words)
    runs = [json.loads(path.read_text()) for path in given.figures]
    baseline = json.loads(given.baseline.read_text()) if given.baseline.exists() else {}
    if given.update:
        aside = given.baseline.with_suffix(".part")
        aside.write_text(json.dumps(updated(baseline, runs, given.only), indent=2) + "\n")
        aside.replace(given.baseline)
        return 0
    known = chosen(baseline.get("figures", {}), given.only)
    if not known:
        sys.stderr.write(f"{given.baseline} holds no such figure; make it with --update\n")
        return 1
    elsewhere = {processor(run) for run in runs} - {baseline.get("processor")}
    if elsewhere:
        known = like_for_like(known)
        said = f"{', '.join(sorted(elsewhere))}; the baseline is of {baseline.get('processor')}"
        sys.stderr.write(f"ratios over unlike work are not judged: {said}\n")
    lines = worsened(known, median_of(runs), MARGINS)
    verdict = "\n".join(lines) or f"{len(known)} benchmarks are no worse than their baseline"
    sys.stdout.write(verdict + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

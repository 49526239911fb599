"""Which published values were reproduced, which wait, which cannot be: a page made of records."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from solverbench.baselines.published import TABLES, Published, load_published, load_related
from solverbench.benchmark.results import Result
from solverbench.leaderboards.render import MARKDOWN
from solverbench.leaderboards.tables import matches

AGREES, ERRORS = 0.1, 3.0  # FID, and standard errors: the larger may lie between two that agree
KINDS = {
    "reproduced": "measured at the published scale, and within 0.1 or three standard errors",
    "differs": "measured at the published scale, and farther away than that",
    "pending": "the suite can run this cell, and no record of it is committed",
    "not here": "cannot be reproduced by this suite, for the reason given",
}
PENDING = (
    "needs a GPU and files that users fetch (weights, Inception, reference statistics): "
    "`solverbench run {} --dry-run` names them"
)
TRANSFER = "no record says yet on which other data set a solver was trained"
NO_NETWORK = "the suite has no such network, or the paper names none"
NO_METHOD = "the suite has no such method, or the paper leaves open which of several it is"
OTHER_METRIC = {  # metrics that no record of today holds as papers define them
    "lpips": "it is taken on the fit's validation pairs, which no metric of a record reads",
    "loss": "it is taken on the fit's validation pairs, which no metric of a record reads",
    "precision": "no metric of a record compares VGG16 features with the teacher's 50,000 images",
    "recall": "no metric of a record compares VGG16 features with the teacher's 50,000 images",
    "density": "no metric of a record compares VGG16 features with the teacher's 50,000 images",
    "coverage": "no metric of a record compares VGG16 features with that reference",
    "train-time": "seconds of another processor are no reproduction",
    "sampling-time": "seconds of another processor are no reproduction",
    "peak-memory": "allocators and batches of the authors' code are not those of the suite",
    "overhead": "seconds of another processor are no reproduction",
    "psnr": "the paper's images are not known",
    "parameters": "it is counted from the method, not measured",
}
BEST_LD3 = "Best LD3"
LD3 = "ld3-"  # solvers of which that is the best
GROUPED = ("nfe", "value", "printed", "bound", "spread", "num_images", "flags", "note")


@dataclass(frozen=True)
class State:
    """What is known of one published value.

    Attributes:
        kind: one of ``KINDS``.
        text: the measured value with its error, commit and device, or why there is none.
    """

    kind: str
    text: str


def state_of(paper: Published, results: Sequence[Result]) -> State:
    """What records say of a published value.

    Only records of the same backbone, solver, NFE and number of images count; the embedded
    experiments have another scale.

    Args:
        paper: the value.
        results: records, each cell once.
    """
    if reason := _impossible(paper):
        return State("not here", reason)
    found = _measured(paper, results)
    if not found:
        return State("pending", PENDING.format(paper.backbone))
    values, errors = [r.metrics["fd"] for r in found], [r.errors.get("fd", 0.0) for r in found]
    value, se = statistics.fmean(values), statistics.fmean(errors)
    if len(values) > 1:
        se = (se**2 + statistics.variance(values) / len(values)) ** 0.5
    near = abs(value - paper.value) <= max(AGREES, ERRORS * se)
    made = found[0].provenance
    error = f" ± {se:.2f}" if se else ""
    where = f"commit {made.commit or 'unknown'}, {made.device}, torch {made.torch}"
    return State("reproduced" if near else "differs", f"{value:.2f}{error} ({where})")


def _impossible(paper: Published) -> str:
    """Why no record could reproduce a value; empty where one could."""
    if paper.metric != "fid":
        return OTHER_METRIC[paper.metric]
    if paper.backbone is None:
        return NO_NETWORK
    if paper.solver is None and "teacher" not in paper.flags and paper.method != BEST_LD3:
        return NO_METHOD
    return TRANSFER if paper.trained_on else ""


def _measured(paper: Published, results: Sequence[Result]) -> list[Result]:
    """The records of a value's cell: all training seeds of the longest fit; of LD3 the best base.

    The longest, so that a trial run does not stand for the method.
    """
    cells: dict[str, list[Result]] = {}
    for result in results:
        spec = result.spec
        if result.status == "ok" and _same(paper, result):
            text = f"{spec.solver} {spec.schedule} {spec.fit} {spec.teacher} {spec.evaluation}"
            cells.setdefault(text, []).append(result)
    longest = max((_length(own[0]) for own in cells.values()), default=0)
    kept = [own for own in cells.values() if _length(own[0]) == longest]
    return min(kept, key=lambda own: statistics.fmean(r.metrics["fd"] for r in own), default=[])


def _same(paper: Published, result: Result) -> bool:
    """Whether a record is of the cell of a value, at its scale."""
    spec = result.spec
    scale = (spec.backbone.name, spec.evaluation.num_images)
    if "fd" not in result.metrics or scale != (paper.backbone, paper.num_images):
        return False
    fit = spec.fit.model_dump() if spec.fit else {}
    if any(fit.get(key) != value for key, value in paper.fit.items()):
        return False
    if paper.method == BEST_LD3 and spec.solver.name.startswith(LD3):
        paper = paper.model_copy(update={"solver": spec.solver.name})
    return matches(paper, result, "fd")


def _length(result: Result) -> int:
    """Training pairs seen in a fit."""
    return result.spec.fit.iterations * result.spec.fit.batch if result.spec.fit else 0


def counted(results: Sequence[Result]) -> str:
    """How many of the paper's values are in which state, in one sentence."""
    return _counts([state_of(paper, results) for paper in load_published()])


def _counts(states: Sequence[State]) -> str:
    number = {kind: sum(one.kind == kind for one in states) for kind in KINDS}
    return (
        f"{number['reproduced']} of {len(states)} values reproduced at the published scale, "
        f"{number['differs']} measured and different, {number['pending']} pending, "
        f"{number['not here']} that this suite cannot reproduce."
    )


def status_page(results: Sequence[Result]) -> str:
    """The whole page; the same records always give the same text.

    Args:
        results: records, each cell once.
    """
    papers = {name: load_published(name) for name in TABLES} | {"": load_related()}
    states = {name: [state_of(p, results) for p in own] for name, own in papers.items()}
    paper = [one for name in TABLES for one in states[name]]
    reasons = _reasons(one for own in states.values() for one in own)
    parts = [
        "# Reproduction status",
        "Written by `solverbench leaderboard build` from `records/`; do not edit.",
        f"**arXiv 2510.17699: {_counts(paper)}** Other papers: {_counts(states[''])}",
        "Records of the embedded backbones (`cifar16`, `digits`) are of another scale: whatever "
        "they show, they reproduce no published value and are not counted here. A value that is "
        "reproduced or differs is followed by what was measured, with its standard error, commit "
        "and device. Numbers in brackets are the reasons below.",
        "\n".join(f"- *{kind}*: {about}." for kind, about in KINDS.items()),
        "\n".join(f"- [{number}] {text}." for text, number in reasons.items()),
    ]
    for name, own in papers.items():
        title = f"Table {name}" if name else "Other papers"
        number = [f"{sum(one.kind == kind for one in states[name])} {kind}" for kind in KINDS]
        parts.append(f"## {title}\n\n{len(own)} values: {', '.join(number)}.")
        parts.append(_table(own, states[name], reasons))
    return "\n\n".join(parts) + "\n"


def _reasons(states: Iterable[State]) -> dict[str, int]:
    """Reasons, numbered in the order in which they first appear."""
    texts = dict.fromkeys(one.text for one in states if one.kind in ("pending", "not here"))
    return {text: number for number, text in enumerate(texts, 1)}


def _table(papers: Sequence[Published], states: Sequence[State], reasons: dict[str, int]) -> str:
    """One line a printed row: its values by NFE, and their state."""
    lines = [
        "| data | method | metric | printed, by NFE | state |",
        "| --- | --- | --- | --- | --- |",
    ]
    pairs = zip(papers, states, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].model_dump_json(exclude={*GROUPED})):
        own = list(group)
        first = own[0][0]
        cells = [
            str(first.data or "-"),
            MARKDOWN.escape(_row_name(first)),
            first.metric + (f", {first.unit}" if first.unit != "1" else ""),
            " · ".join(_printed(paper) for paper, _ in own),
            _said([(paper, state) for paper, state in own], reasons),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row_name(paper: Published) -> str:
    """The method, with what else tells a printed row from others."""
    said = [f"{key} {value}" for key, value in paper.fit.items()]
    said += [f"trained on {paper.trained_on}"] if paper.trained_on else []
    said += [paper.device] if paper.device else []
    said += [paper.source.partition(",")[0]] if paper.table is None else []
    return paper.method + (f" ({', '.join(said)})" if said else "")


def _printed(paper: Published) -> str:
    """``NFE: value`` as printed."""
    value = MARKDOWN.escape(f"{paper.bound}{paper.printed}")
    return f"{paper.nfe}: {value}" if paper.nfe else value


def _said(own: Sequence[tuple[Published, State]], reasons: dict[str, int]) -> str:
    """The states of a row: in one word where all are equal, else by NFE."""
    texts = [
        f"{state.kind} [{reasons[state.text]}]"
        if state.text in reasons
        else f"**{state.kind}**: {MARKDOWN.escape(state.text)}"
        for _, state in own
    ]
    if len(set(texts)) == 1 and own[0][1].text in reasons:
        return texts[0]
    return " · ".join(f"{p.nfe}: {text}" for (p, _), text in zip(own, texts, strict=True))

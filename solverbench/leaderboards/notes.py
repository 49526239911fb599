"""The sentences below a table: what a reader must know before comparing two numbers."""

from collections.abc import Callable, Iterable, Sequence

from solverbench.baselines.published import Published
from solverbench.benchmark.results import FLAGS, Provenance, Result
from solverbench.benchmark.spec import EXACT, FitSpec, Named
from solverbench.leaderboards.tables import Cell, Table, series
from solverbench.leaderboards.views import find

REIMPLEMENTED = "(re-implementation)"  # in titles of methods whose code is not public
SELECTION = {
    "last": "last weights",
    "best": "weights of the best validation",
    None: "weights as the method selects them",
}
NONE = "nothing"  # behind a value without an error
NO_ERRORS = "No error was recorded, so nothing is marked: values alone tell no two rows apart."
UNDERLINED = (
    "Underlined: where no row is bold, all that cannot be told from the best; else the second and "
    "all that cannot be told from it."
)
SEEDS_ALONE = (
    "No error over images was recorded, so rows are tested by their training seeds alone. Bold: "
    "better than every other ranked row by more than Welch's quantile of Student's t times the "
    f"root of sd^2 / n of both rows. {UNDERLINED} This leaves out that other images would give "
    "other values, and how rows of a single training seed would scatter. Between two such rows "
    "there is no test, so a column has no marks where the best row and another are such."
)


def plugin(named: Named) -> str:
    """A name with its options, for example ``unipc-3 (variant=bh1)``."""
    options = ", ".join(f"{key}={value}" for key, value in named.options.items())
    return f"{named.name} ({options})" if options else named.name


def heading(group: Sequence[Result]) -> str:
    """Backbone, sample count and protocol version."""
    spec = group[0].spec
    return f"{plugin(spec.backbone)}, {spec.evaluation.num_images} samples, protocol {spec.version}"


def notes(group: Sequence[Result], tables: Sequence[Table]) -> list[str]:
    """All notes of a group but the numbered faults."""
    return [
        *_protocol(group),
        *(view.note for view in find(group)),
        *_again(group),
        *(f"{t.facts.label}: {t.facts.about}." for t in tables if t.facts.about),
        *_behind(tables),
        *_errors(tables),
        *_measured_flags(group, tables),
        *_papers(group, [c.published for t in tables for r in t.rows for c in r.cells.values()]),
        *_flags(group),
        *_provenance(group),
    ]


def _protocol(group: Sequence[Result]) -> list[str]:
    """Samples, teacher, marks and budgets."""
    spec = group[0].spec
    ev, teacher = spec.evaluation, spec.teacher
    lines = [
        f"Samples: {ev.num_images} a cell, seeds {ev.first_seed} to "
        f"{ev.first_seed + ev.num_images - 1}, batches of {ev.batch}.",
        *_measured(group),
        f"Teacher: {plugin(teacher.solver)}, {teacher.nfe} NFE; it is not ranked.",
        *_networks(group),
        *_marks(group),
    ]
    for row in series(group):
        spec = row.results[0].spec
        if spec.schedule:
            lines.append(
                f"{row.title}: times chosen by {plugin(spec.schedule)}{_took(row.results)}."
            )
        if spec.fit:
            trained = f"{_budget(spec.fit, row.results)}{_took(row.results)}"
            lines.append(f"{row.title}: {plugin(spec.solver)}, {trained}.")
    return lines + _left_out(group)


def _measured(group: Sequence[Result]) -> list[str]:
    """Extractor, quantisation and reference, where records say them."""
    made = dict.fromkeys(r.measurement for r in group if r.measurement)
    said = {one.model_copy(update={"seconds": 0.0}): None for one in made}
    return [
        f"Extractor: {one.extractor} (weights {one.extractor_sha256[:12] or 'none'}, resize "
        f"{one.resize}, {one.precision}, {_batches(one.batch)}), images of "
        f"{one.image_size[0]} x {one.image_size[1]} pixels, 8 bits by the rule of "
        f"{one.quantisation.upper()}. Reference: {one.reference}."
        for one in said
    ]


def _networks(group: Sequence[Result]) -> list[str]:
    """Rows whose network was not run as exactly as it can be."""
    rows, found = series(group), dict[str, list[str]]()
    for row in rows:
        for how in dict.fromkeys(str(r.spec.network) for r in row.results):
            if how != str(EXACT):
                found.setdefault(how, []).append(row.title)
    return [
        f"Network run with {how}, not exactly: "
        f"{'every row' if len(titles) == len(rows) else ', '.join(titles)}."
        for how, titles in found.items()
    ]


def _batches(size: int | None) -> str:
    return "all images at once" if size is None else f"batches of {size}"


def _marks(group: Sequence[Result]) -> list[str]:
    """What bold and underlined mean here."""
    good = [r for r in group if r.status == "ok" and not r.spec.is_teacher]
    old = [r for r in good if r.measurement is None]
    several = any(len(row.at(n)) > 1 for row in series(group) for n in row.nfes)
    if old and len(old) == len(good):
        return [SEEDS_ALONE if several else NO_ERRORS]
    lines = [_rule(several)] if good else []
    if old:
        lines.append(
            f"No error over images was recorded for {len(old)} of {len(good)} records: no "
            "difference to their rows has an error."
        )
    return lines


def _rule(several: bool) -> str:
    """How rows are marked by errors over images."""
    student = (
        ", where the part from training seeds counts with Welch's quantile of Student's t instead "
        "of 1.96"
    )
    seeds = "; of several training seeds, sd^2 / n of each row is added" if several else ""
    return (
        "Bold: better than every other ranked row by more than 1.96 standard errors of the "
        f"difference{student if several else ''}. {UNDERLINED} The error of a difference is that "
        "of image by image differences where both rows have them, else both errors added in "
        f"squares{seeds}. Where a row has no error over images, the difference has none, and "
        "nothing is marked that would need it."
    )


def _behind(tables: Sequence[Table]) -> list[str]:
    """What stands behind ``±`` in which rows of which tables."""
    said: dict[str, list[str]] = {}
    for table in tables:
        whole, parts = _kinds(table)
        if {*whole, *parts} - {NONE}:
            said.setdefault(_listed(whole, parts), []).append(table.facts.label)
    return [f"Behind ± in {', '.join(labels)}: {what}." for what, labels in said.items()]


def _kinds(table: Table) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By what stands behind ``±`` the rows that have it at every NFE, and at some only."""
    whole: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for row in table.rows:
        nfes: dict[str, list[int]] = {}
        for nfe, cell in row.cells.items():
            if cell.values:
                nfes.setdefault(_kind(cell), []).append(nfe)
        for kind, own in nfes.items():
            at = f"{row.title} (NFE {', '.join(map(str, own))})"
            (parts if len(nfes) > 1 else whole).setdefault(kind, []).append(
                at if len(nfes) > 1 else row.title
            )
    return whole, parts


def _listed(whole: dict[str, list[str]], parts: dict[str, list[str]]) -> str:
    """Both in words; the commonest kind is that of every row not named."""
    most = max(whole, key=lambda kind: len(whole[kind]), default="")
    kinds = sorted({*whole, *parts}, key=lambda kind: (kind == most, kind))
    rest = "every other row" if len(kinds) > 1 else "every row"
    found = []
    for kind in kinds:
        own = [rest] if kind == most else whole.get(kind, [])
        found.append(f"{kind} in {', '.join([*parts.get(kind, []), *own])}")
    return "; ".join(found)


def _kind(cell: Cell) -> str:
    """What stands behind ``±`` in a cell."""
    if cell.std is not None:
        return "sample standard deviation over training seeds"
    return NONE if cell.error is None else "standard error over images"


def _errors(tables: Sequence[Table]) -> list[str]:
    """How the errors of each metric were found, and its numbers of rows."""
    methods: dict[str, list[str]] = {}
    for table in tables:
        facts = table.facts
        if facts.num_generated:
            sizes = f"M = {facts.num_generated}, N = {facts.num_reference}, D = {facts.dim}"
            shared = {k: v for k, v in facts.facts.items() if not k.startswith("value_")}
            known = ", ".join(f"{key} {_short(value)}" for key, value in shared.items())
            how = f"{facts.se_method or 'none'} ({sizes}{', ' if known else ''}{known})"
            methods.setdefault(how, []).append(facts.label)
    return [f"Error of {', '.join(labels)}: {how}." for how, labels in methods.items()]


def _measured_flags(group: Sequence[Result], tables: Sequence[Table]) -> list[str]:
    """What a metric flags, and in which rows, where it does so in some only."""
    lines = []
    for table in tables:
        has = [r.metric_facts[table.metric] for r in group if table.metric in r.metric_facts]
        for flag in dict.fromkeys(flag for facts in has for flag in facts.flags):
            where = "" if all(flag in f.flags for f in has) else f", {_rows(group, table, flag)}"
            lines.append(f"{table.facts.label}{where}: {FLAGS.get(flag, flag)}.")
    return lines


def _rows(group: Sequence[Result], table: Table, flag: str) -> str:
    """Rows and NFE whose records have a flag."""
    found = []
    for row in series(group):
        kept = [r for r in row.results if table.metric in r.metric_facts]
        nfes = sorted({r.spec.nfe for r in kept if flag in r.metric_facts[table.metric].flags})
        if nfes:
            found.append(f"{row.title} (NFE {', '.join(map(str, nfes))})")
    return ", ".join(found)


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _left_out(group: Sequence[Result]) -> list[str]:
    """What rows and seconds of fits do not count, where there are any."""
    fits = [r.spec.fit for r in group if r.spec.fit]
    if not fits:
        return []
    pairs, nfe = [fit.train_size + fit.validation_size for fit in fits], group[0].spec.teacher.nfe
    made = f"{_span(pairs, ',', 'pairs')} x {nfe} NFE"
    count = _span([n * nfe for n in pairs], ",", "network rows without guidance")
    warm_up = any(r.spec.schedule for r in group)
    schedules = ", while those of a schedule optimiser include its warm-up" if warm_up else ""
    return [
        "Fit rows and seconds of learned solvers leave out making the teacher pairs that they "
        f"share ({made} = {count}){schedules}; fit seconds leave out validation, fit rows "
        "include it."
    ]


def _budget(fit: FitSpec, fitted: Sequence[Result]) -> str:
    """How a learned solver was trained."""
    seeds = ", ".join(str(s) for s in sorted({r.spec.seed for r in fitted}))
    return (
        f"{fit.iterations} iterations of {fit.batch} pairs out of {fit.train_size}, "
        f"learning rate {fit.lr:g} ({fit.lr_schedule}), distance {fit.distance}, "
        f"{SELECTION[fit.select]}, training seeds {seeds}"
    )


def _took(results: Sequence[Result]) -> str:
    """What making one cell took, from the cheapest to the dearest; nothing where unknown."""
    costs = [r.cost for r in results if r.cost]
    parts = [
        _span([c.fit_seconds for c in costs], ".3g", "s"),
        _span([c.fit_network_rows for c in costs], ",", "network rows"),
        _span([c.fit_pairs for c in costs], ",", "teacher pairs"),
    ]
    known = ", ".join(part for part in parts if part)
    return f"; {known} a cell" if known else ""


def _span(values: Sequence[float], form: str, unit: str) -> str:
    """``least to most unit``; empty where nothing was counted."""
    if not any(values):
        return ""
    ends = dict.fromkeys([f"{min(values):{form}}", f"{max(values):{form}}"])
    return f"{' to '.join(ends)} {unit}"


def _again(group: Sequence[Result]) -> list[str]:
    """What a re-implementation is, where there are any."""
    titles = [row.title for row in series(group) if REIMPLEMENTED in row.title]
    if not titles:
        return []
    return [
        f"{', '.join(titles)}: written here after the paper, whose authors never published their "
        "code; what the paper leaves open is this suite's choice. Published numbers are the "
        "authors' own."
    ]


def _papers(group: Sequence[Result], values: Iterable[Published | None]) -> list[str]:
    """Where published values come from."""
    quoted = [p for p in values if p]
    lines = []
    if quoted:
        sources = ", ".join(sorted({f"{p.source} ({p.num_images} samples)" for p in quoted}))
        lines.append(f"Paper: quoted from {sources}, not measured here.")
    if any(p.num_images != group[0].spec.evaluation.num_images for p in quoted):
        lines.append("Its sample count is another one, on which FID depends: no fair comparison.")
    if any("other-teacher" in p.flags for p in quoted):
        lines.append("Some quoted values are of another teacher and not comparable.")
    return lines


def _flags(group: Sequence[Result]) -> list[str]:
    """What records say of themselves."""
    said = {(r.title, flag) for r in group for flag in r.flags}
    for result in group:
        sha256 = str(result.conventions.get("discriminator_sha256") or "")
        if sha256:  # says what a flag about the discriminator would, and which one
            said -= {(result.title, flag) for flag in result.flags if "discriminator" in flag}
            about = f"pretrained discriminator {sha256[:12]}, its making is not in the fit cost"
            said.add((result.title, about))
    return [f"{title}: {flag}." for title, flag in sorted(said)]


def _provenance(group: Sequence[Result]) -> list[str]:
    """Device, versions, commit, dates; a warning where rows had other weights or references."""
    made = [r.provenance for r in group]
    dates = sorted(p.created[:10] for p in made)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = _values(made, lambda p: f"{p.solverbench}, Python {p.python}, torch {p.torch}")
    lines = [
        f"Made on {_values(made, _machine)} "
        f"with solverbench {versions}; commit {_values(made, lambda p: p.commit)}; {span} (UTC)."
    ]
    for what, hashes in (
        ("weights", {p.weights_sha256 for p in made if p.weights_sha256}),
        ("reference statistics", {p.reference_sha256 for p in made if p.reference_sha256}),
    ):
        short = ", ".join(sorted(h[:12] for h in hashes)) or "none"
        warning = " Rows differ in them: do NOT compare." if len(hashes) > 1 else ""
        lines.append(f"SHA-256 of the {what}: {short}.{warning}")
    return lines


def _machine(one: Provenance) -> str:
    """Device and what shared it; seconds depend on both."""
    return f"{one.device}, {one.threads} thread(s), {one.jobs} process(es) at once"


def _values(made: Sequence[Provenance], of: Callable[[Provenance], str]) -> str:
    """The different values, each once."""
    return " / ".join(sorted({of(one) for one in made}))

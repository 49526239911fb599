"""Pages as a pure function of committed records: a recipe's, a backbone's, index, state, studies.

``pages(root, studies)`` gives the text of each; whoever calls it writes or compares. No torch here:
the studies, a page for each experiment of the paper, come from ``reporting.studies``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from solverbench.benchmark.results import Result
from solverbench.benchmark.store import StoredInfluences
from solverbench.leaderboards.committed import (
    COMMUNITY,
    Committed,
    faults_of,
    newest,
    orphans,
    read_all,
    sources_of,
)
from solverbench.leaderboards.render import MARKDOWN, render
from solverbench.leaderboards.reproduction import counted, status_page
from solverbench.leaderboards.submissions import examine, read_manifest
from solverbench.leaderboards.tables import Series, series, split

ROOT = Path(__file__).parent  # records, remarks and pages that ship
INDEX, STATUS, BACKBONES, PAPER = "README.md", "status.md", "backbones", "paper"
WRITTEN = "Written by `solverbench leaderboard build` from `records/`; do not edit."
LEGEND = (
    "Provenance: *this project* is what its recipe of that name measured, *community* what "
    "somebody else sent, whose tableau was re-run here but whose metrics were not measured again; "
    "columns headed *paper* hold published values, quoted.",
    "Records are linked by training seed. Solver files (tableaus) sample without any code of their "
    "method: `solverbench sample FILE`. A solver without a file that is not trained follows from "
    "its name and options; of one that is trained the file was not committed.",
)
Pages = dict[str, str]  # path below ``pages/`` with slashes, to text


class Study(NamedTuple):
    """An experiment of the paper at the embedded scale, as records tell it.

    Attributes:
        title: for people.
        num_found: cells with a record that went well.
        num_cells: all of them.
        text: markdown.
    """

    title: str
    num_found: int
    num_cells: int
    text: str


Studies = Mapping[str, Study]  # by the id of the experiment


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the records below a folder, a line each; empty where nothing is."""
    records = root / "records"
    found, faults = read_all(records)
    faults += faults_of(found)
    for source in sources_of(records):
        own = [one for one in found if one.source == source]
        if source.startswith(f"{COMMUNITY}/"):
            faults += examine(records / source)[1]
        else:
            faults += orphans(records / source, own)
    return [line.replace(f"{root}/", "") for line in dict.fromkeys(faults)]


def differences(root: Path, studies: Studies) -> list[str]:
    """Pages that are not what their records give, a line each."""
    wanted, folder = pages(root, studies), root / "pages"
    lines = []
    for name, text in wanted.items():
        path = folder / name
        if not path.exists():
            lines.append(f"pages/{name} is missing; run solverbench leaderboard build")
        elif path.read_text(encoding="utf-8") != text:
            lines.append(
                f"pages/{name} is not what its records give; run solverbench leaderboard build"
            )
    return lines + [f"pages/{name} has no records; delete it" for name in stray(root, wanted)]


def stray(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """Pages of backbones and studies that no record is of any more."""
    folder = root / "pages"
    lying = sorted(path for kind in (BACKBONES, PAPER) for path in (folder / kind).glob("*.md"))
    names = [path.relative_to(folder).as_posix() for path in lying]
    return [name for name in names if name not in wanted]


def pages(root: Path, studies: Studies) -> Pages:
    """Every page by its path below ``pages/``.

    Args:
        root: folder of ``records`` and ``remarks``; its records were checked by ``problems``.
        studies: experiments of the paper that have any of these records.
    """
    found, _ = read_all(root / "records")
    boards = {_board_name(*key): own for key, own in _by_backbone(found).items()}
    made: Pages = {}
    for source in dict.fromkeys(one.source for one in found if not one.by_others):
        made[f"{source}.md"] = _recipe_page(root, source, found)
    for name, own in boards.items():
        made[name] = _board(root, own, name)
    for name, study in studies.items():
        again = f"`solverbench paper run {name}` runs what is missing."
        made[f"{PAPER}/{name}.md"] = f"{WRITTEN} {again}\n\n{study.text}"
    made[STATUS] = status_page([one.result for one in newest(found).values()])
    made[INDEX] = _index(found, boards, studies)
    return made


def _by_backbone(found: Sequence[Committed]) -> dict[tuple[str, int], list[Committed]]:
    """Records by backbone and protocol; two protocols never share a table."""
    groups: dict[tuple[str, int], list[Committed]] = {}
    for one in found:
        spec = one.result.spec
        groups.setdefault((spec.backbone.name, spec.version), []).append(one)
    return dict(sorted(groups.items()))


def _board_name(backbone: str, version: int) -> str:
    return f"{BACKBONES}/{backbone}-protocol-{version}.md"


def _recipe_page(root: Path, source: str, found: Sequence[Committed]) -> str:
    """Tables of one folder of records, then its remarks."""
    own = [one.result for one in found if one.source == source]
    text = render(own, "md", None, StoredInfluences(root / "records" / source))
    remarks = root / "remarks" / f"{source}.md"
    return text + (f"\n{remarks.read_text(encoding='utf-8')}" if remarks.exists() else "")


def _board(root: Path, own: Sequence[Committed], name: str) -> str:
    """All records of a backbone and protocol: tables, then where each cell comes from."""
    spec, results = own[0].result.spec, [one.result for one in own]
    sources = list(dict.fromkeys(one.source for one in own))
    about = ", ".join(
        f"[{s}](../{s}.md)" if not s.startswith(f"{COMMUNITY}/") else MARKDOWN.escape(s)
        for s in sources
    )
    parts = [
        f"# Leaderboard of {MARKDOWN.escape(spec.backbone.name)}, protocol {spec.version}",
        f"{WRITTEN} Cells of: {about}. What was found in each stands on its page.",
        render(results, "md", None, StoredInfluences(root / "records")).rstrip("\n"),
        "## Where each cell comes from",
        *(_origins(root, group, own) for group in split(results)),
        *_senders(root, sources),
        "\n".join(f"- {line}" for line in LEGEND),
    ]
    return "\n\n".join(parts) + "\n"


def _origins(root: Path, group: Sequence[Result], own: Sequence[Committed]) -> str:
    """Provenance, records and solver files of each cell of a group."""
    grid = [["solver", "NFE", "provenance", "records", "solver files"]]
    kept, sources = newest(own), dict[str, list[str]]()
    for one in own:
        sources.setdefault(one.result.spec.key(), []).append(one.source)
    for row in series(group):
        grid += [_origin(root, row, nfe, (kept, sources)) for nfe in row.nfes]
    ev = group[0].spec.evaluation
    return MARKDOWN.table(f"{ev.num_images} samples, metrics {', '.join(ev.metrics)}", grid)


def _origin(
    root: Path, row: Series, nfe: int, own: tuple[dict[str, Committed], dict[str, list[str]]]
) -> list[str]:
    """One cell, all its training seeds.

    Args:
        root: of the links.
        row: of the cell.
        nfe: likewise.
        own: by the keys of their cells, the records that tables show, and all sources.
    """
    cells = [own[0][result.spec.key()] for result in row.at(nfe)]
    sources = dict.fromkeys(source for one in cells for source in own[1][one.result.spec.key()])
    files = [one for one in cells if one.tableau.exists()]
    return [
        MARKDOWN.escape(row.title),
        str(nfe),
        "; ".join(_provenance(source) for source in sources),
        " ".join(_link(root, one, one.path) for one in cells),
        " ".join(_link(root, one, one.tableau) for one in files) or "-",
    ]


def _provenance(source: str) -> str:
    """Who measured, and where that lies."""
    folder, _, name = source.rpartition("/")
    return f"community ({MARKDOWN.escape(name)})" if folder else f"this project ({source})"


def _link(root: Path, one: Committed, path: Path) -> str:
    """The training seed, linked to a file of ``records/`` from a page of a backbone."""
    return f"[{one.result.spec.seed}](../../{path.relative_to(root).as_posix()})"


def _senders(root: Path, sources: Sequence[str]) -> Iterator[str]:
    """Who sent what, where anybody did."""
    for source in sources:
        if source.startswith(f"{COMMUNITY}/"):
            said = read_manifest(root / "records" / source)
            who = ", ".join(MARKDOWN.escape(part) for part in (said.contact, said.url) if part)
            yield f"- Community submission {MARKDOWN.escape(said.name)}: {who}."


def _index(
    found: Sequence[Committed], boards: Mapping[str, list[Committed]], studies: Studies
) -> str:
    """All pages, with what is on them."""
    grid = [["backbone", "protocol", "solvers", "NFE", "cells", "failed", "community"]]
    for name, own in boards.items():
        cells = list(newest(own).values())
        specs = [one.result.spec for one in cells]
        nfes = sorted({spec.nfe for spec in specs if not spec.is_teacher})
        grid.append(
            [
                f"[{MARKDOWN.escape(specs[0].backbone.name)}]({name})",
                str(specs[0].version),
                str(len({spec.solver.name for spec in specs})),
                ", ".join(map(str, nfes)),
                str(len(cells)),
                str(sum(one.result.status != "ok" for one in cells)),
                str(sum(one.by_others for one in cells)),
            ]
        )
    recipes = dict.fromkeys(one.source for one in found if not one.by_others)
    state = counted([one.result for one in newest(found).values()])
    return (
        "\n\n".join(
            [
                "# Leaderboards",
                f"{WRITTEN} How to send results: docs/leaderboard.md of the project.",
                MARKDOWN.table("By backbone: all committed records of a protocol", grid),
                "### By recipe: one run, with remarks on what was found",
                "\n".join(f"- [{source}]({source}.md)" for source in recipes),
                *_of_paper(studies),
                "### Against the papers",
                f"[Reproduction status]({STATUS}): {state}",
            ]
        )
        + "\n"
    )


def _of_paper(studies: Studies) -> Iterator[str]:
    """The experiments of the paper, where there are any."""
    if studies:
        yield "### By table or figure of the paper: the same design on an embedded backbone"
        yield "\n".join(
            f"- [{MARKDOWN.escape(one.title)}]({PAPER}/{name}.md): "
            f"{one.num_found} of {one.num_cells} cells"
            for name, one in studies.items()
        )

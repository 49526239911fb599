"""Committed records with their places, and what is wrong with them, a line a fault. No torch here.

``records/<recipe>/`` holds what this project measured, ``records/community/<name>/`` what others
sent. Below either, a record lies at ``<backbone>/<solver>/nfe04-<key>.json``, and beside it may lie
its influences and its tableau.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from solverbench.benchmark.results import Result
from solverbench.benchmark.spec import BENCHMARK_VERSION
from solverbench.benchmark.store import (
    INFLUENCES,
    RECORD_NAME,
    StoredInfluences,
    influence_path,
    read_record,
    record_path,
)
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.tensors import tableau_fault

COMMUNITY = "community"
TABLEAU = ".safetensors"


@dataclass(frozen=True)
class Committed:
    """A record and where it lies.

    Attributes:
        path: of its file.
        source: name of a recipe's folder, or ``community/<name>``.
        result: the record.
    """

    path: Path
    source: str
    result: Result

    @property
    def tableau(self) -> Path:
        """Where its solver lies, if it is there."""
        return self.path.with_suffix(TABLEAU)

    @property
    def by_others(self) -> bool:
        """Whether somebody else measured it."""
        return self.source.startswith(f"{COMMUNITY}/")


def sources_of(records: Path) -> list[str]:
    """The folders of records that count as one: each recipe's, and each submission."""
    folders = [path for path in sorted(records.glob("*")) if path.is_dir()]
    names = [path.name for path in folders if path.name != COMMUNITY]
    others = [path.name for path in sorted((records / COMMUNITY).glob("*")) if path.is_dir()]
    return names + [f"{COMMUNITY}/{name}" for name in others]


def read_source(folder: Path, source: str) -> tuple[list[Committed], list[str]]:
    """The records of a folder, and a line for each that cannot be read.

    Args:
        folder: of a recipe or a submission.
        source: its name.
    """
    found, faults = list[Committed](), list[str]()
    for path in sorted(p for p in folder.rglob("nfe*.json") if RECORD_NAME.fullmatch(p.name)):
        try:
            found.append(Committed(path, source, read_record(path)))
        except SolverBenchError as error:
            faults.append(str(error))
    return found, faults


def read_all(records: Path) -> tuple[list[Committed], list[str]]:
    """All records below ``records/``, and a line for each that cannot be read."""
    parts = [read_source(records / source, source) for source in sources_of(records)]
    return [one for own, _ in parts for one in own], [line for _, own in parts for line in own]


def faults_of(found: Sequence[Committed]) -> list[str]:
    """What is wrong with records and with what lies beside them, a line a fault."""
    return [
        *(line for one in found for line in _own_faults(one)),
        *_versions(found),
        *_repeated(found),
    ]


def orphans(folder: Path, found: Sequence[Committed]) -> list[str]:
    """Sidecars without a record, or that their record does not name."""
    known = {influence_path(one.path) for one in found if one.result.influences_sha256}
    known |= {one.tableau for one in found if one.result.status == "ok"}
    lying = sorted(folder.rglob(f"nfe*{TABLEAU}"))
    return [f"{path} belongs to no record; delete it" for path in lying if path not in known]


def _own_faults(one: Committed) -> Iterator[str]:
    """Faults of one record, its name first: an edited spec has another key."""
    result = one.result
    wanted = record_path(Path(), result.spec)
    if one.path.parts[-3:] != wanted.parts:
        yield f"{one.path} holds the cell {wanted}: renamed, or its spec was edited"
        return
    if result.spec.version > BENCHMARK_VERSION:
        yield (
            f"{one.path} is of protocol {result.spec.version}; this solverbench knows "
            f"{BENCHMARK_VERSION} and older"
        )
    if result.status != "ok":
        return
    if result.cost is None or result.cost.nfe != result.spec.nfe:
        counted = result.cost.nfe if result.cost else "no"
        yield f"{one.path} counted {counted} network calls a sample; its cell has {result.spec.nfe}"
    if line := _influence_fault(one):
        yield line
    if one.tableau.exists() and (line := tableau_fault(one.tableau, result)):
        yield line


def _influence_fault(one: Committed) -> str:
    """Why the influences beside a record are not its own; empty where nothing is wrong.

    Where the file was not committed there is none: tables then have no paired test.
    """
    try:
        stored = StoredInfluences(one.path)
        for metric in one.result.metrics:
            stored(one.result, metric)
    except SolverBenchError as error:
        return str(error)
    return ""


def _versions(found: Sequence[Committed]) -> Iterator[str]:
    """Folders that hold several protocols; their page would be no table."""
    for source in dict.fromkeys(one.source for one in found):
        held = sorted({one.result.spec.version for one in found if one.source == source})
        if len(held) > 1:
            yield (
                f"{source} holds records of protocols {', '.join(map(str, held))}; two never share "
                "a table: keep each in a folder of its own"
            )


def _repeated(found: Sequence[Committed]) -> Iterator[str]:
    """Cells that lie twice in one folder, or in a submission and anywhere else.

    Two recipes of this project may share a cell, such as the teacher's; pages take the newer.
    """
    first: dict[str, Committed] = {}
    for one in sorted(found, key=lambda one: one.by_others):
        other = first.setdefault(one.result.spec.key(), one)
        if other is not one and (one.by_others or one.source == other.source):
            yield f"{one.path} is a duplicate of {other.path}; keep one of them"


def newest(found: Sequence[Committed]) -> dict[str, Committed]:
    """Of each cell, by its key, the newest record, as tables take it."""
    return {
        one.result.spec.key(): one
        for one in sorted(found, key=lambda one: one.result.provenance.created)
    }


def is_sidecar(name: str) -> bool:
    """Whether a file of this name may lie beside a record."""
    stem, dot, _ = name.partition(".")
    kept = name in (f"{stem}{INFLUENCES}", f"{stem}{TABLEAU}")
    return bool(dot) and kept and bool(RECORD_NAME.fullmatch(f"{stem}.json"))

"""Submissions: records and solvers of a run as a folder for a pull request, and its checks.

Only data goes in: records (JSON), influences and tableaus (safetensors), and a manifest with the
SHA-256 of each. Nothing of it is ever executed. No torch here.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from solverbench.benchmark.spec import BENCHMARK_VERSION, Model
from solverbench.benchmark.store import FOLDER_NAME, RECORD_NAME, influence_path, record_path
from solverbench.errors import SolverBenchError, shown
from solverbench.leaderboards.committed import (
    COMMUNITY,
    Committed,
    faults_of,
    is_sidecar,
    orphans,
    read_source,
)
from solverbench.leaderboards.tensors import TABLEAU as TABLEAU_FORMAT
from solverbench.leaderboards.tensors import read_tensors

MANIFEST = "manifest.json"
MOST_BYTES = {".json": 1 << 20, ".safetensors": 1 << 24}  # of a file; far above what cells need
LONGEST = 1000  # letters of a text in a record
PLACE = re.compile(r"(^|[\s'\"=:(\[,])(~|\.{1,2}|[A-Za-z]:)?[/\\]+\w|file:|^[A-Za-z]:")
LINK = re.compile(r"\]\(|://|<\w")


class Manifest(Model):
    """What a submission says of itself.

    Attributes:
        format: of this file.
        name: folder of the submission, chosen by who sends it.
        contact: a person or an address; shown on pages.
        url: of a paper or a project; shown on pages.
        solverbench: version that packed it.
        protocol: of the benchmark.
        files: SHA-256 of each file, by its path in the folder.
    """

    format: Literal["solverbench-submission-1"] = "solverbench-submission-1"
    name: str
    contact: str = ""
    url: str = ""
    solverbench: str
    protocol: int
    files: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not FOLDER_NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {shown(self.name, 40)!r}; allowed are letters, digits, '-', '_' and '.', "
                "a letter or digit first"
            )
        if not (self.contact or self.url):
            raise ValueError("neither contact nor url is given; readers need one of them")
        if self.url and not re.fullmatch(r"https://[\w./%~?=&#+-]{4,200}", self.url):
            raise ValueError("url is no plain https:// address")
        if self.contact and not re.fullmatch(r"[\w .,@+'()-]{2,100}", self.contact):
            raise ValueError("contact takes up to 100 letters, digits and . , @ + ' ( ) -")
        return self


def pack(
    run: Path, name: str, contact: str, url: str, known: Sequence[Committed]
) -> tuple[dict[str, bytes], list[str]]:
    """The files of a submission, by their paths in its folder.

    Args:
        run: folder that ``solverbench run`` wrote.
        name: of the submission.
        contact: a person or an address; may be empty where there is a url.
        url: of a paper or a project, likewise.
        known: committed records; their cells are left out.

    Returns:
        Files, and a line for each cell that is left out.

    Raises:
        SolverBenchError: where there is nothing to send, or something must not be sent.
    """
    found, faults = read_source(run, name)
    if faults or (faults := faults_of(found)):
        raise SolverBenchError(faults[0])
    keys = {one.result.spec.key() for one in known}
    files, left = dict[str, bytes](), list[str]()
    for one in found:
        if why := _left_out(one, keys):
            left.append(f"left out {one.path.relative_to(run)}: {why}")
            continue
        if line := next(_private(one), ""):
            raise SolverBenchError(line)
        files |= _files(one)
    if not files:
        why = f" ({left[0]})" if left else ""
        raise SolverBenchError(f"{run} holds nothing to submit{why}. Run a recipe first")
    manifest = _manifest(name, contact, url, files)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1)
    return files | {MANIFEST: f"{text}\n".encode()}, left


def _left_out(one: Committed, known: set[str]) -> str:
    """Why a cell is not sent; empty where it is."""
    if one.result.status != "ok":
        return one.result.status
    if one.result.spec.key() in known:
        return "its cell is on the leaderboard already"
    return "" if one.tableau.exists() else "no tableau beside it"


def _files(one: Committed) -> dict[str, bytes]:
    """A record and what lies beside it."""
    place = record_path(Path(), one.result.spec)
    files = {place.as_posix(): one.path.read_bytes()}
    for path in (one.tableau, influence_path(one.path)):
        if path.exists() and (path == one.tableau or one.result.influences_sha256):
            files[place.with_name(path.name).as_posix()] = path.read_bytes()
    return files


def _manifest(name: str, contact: str, url: str, files: dict[str, bytes]) -> Manifest:
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
    try:
        return Manifest(
            name=name,
            contact=contact,
            url=url,
            solverbench=version("solverbench"),
            protocol=BENCHMARK_VERSION,
            files=sums,
        )
    except ValidationError as error:
        raise SolverBenchError(_first(error)) from error


def _first(error: ValidationError) -> str:
    """What is wrong, in one line."""
    one = error.errors()[0]
    where = ".".join(map(str, one["loc"]))
    text = " ".join(str(one["msg"]).removeprefix("Value error, ").split())
    return shown(f"{where}: {text}" if where else text)


def folder_of(place: Path) -> Path:
    """The folder of a submission: the one that holds the manifest, at or below ``place``.

    Raises:
        SolverBenchError: where there is none, or several.
    """
    found = sorted(place.rglob(MANIFEST)) if place.is_dir() else []
    if len(found) != 1:
        raise SolverBenchError(
            f"{place} holds {len(found)} submissions (folders with {MANIFEST}); name one that "
            "solverbench submit wrote"
        )
    return found[0].parent


def read_manifest(folder: Path) -> Manifest:
    """What a submission says of itself.

    Raises:
        SolverBenchError: where the file cannot be read or is no manifest; one line.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SolverBenchError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise SolverBenchError(f"{path} is not a valid manifest: {_first(error)}") from error


def examine(folder: Path) -> tuple[list[Committed], list[str]]:
    """The records of a submission, and a line for each thing that is wrong with it alone.

    Args:
        folder: with the manifest.
    """
    faults = list(_foreign(folder)) or list(_sums(folder))
    if faults:  # nothing else is opened then
        return [], faults
    found, faults = read_source(folder, f"{COMMUNITY}/{folder.name}")
    faults += [*faults_of(found), *orphans(folder, found)]
    for one in found:
        if one.result.status != "ok":
            faults.append(f"{one.path} is of a cell that {one.result.status}; send finished ones")
        elif not one.tableau.exists():
            faults.append(f"{one.path} has no tableau beside it; a submission needs the solver")
        elif one.result.influences_sha256 and not influence_path(one.path).exists():
            faults.append(f"{influence_path(one.path)} is missing; its record names it")
        faults += _private(one)
    if not (found or faults):
        faults = [f"{folder} holds no records"]
    return found, faults


def duplicates(found: Sequence[Committed], known: Sequence[Committed]) -> list[str]:
    """A line for each record whose cell is committed elsewhere.

    Args:
        found: records of a submission.
        known: committed records, which may hold the submission itself.
    """
    places = {one.result.spec.key(): one for one in known}
    lines = []
    for one in found:
        other = places.get(one.result.spec.key())
        if other is not None and other.source != one.source:
            lines.append(f"{one.path} is a duplicate: {other.source} has its cell already")
    return lines


def _foreign(folder: Path) -> Iterator[str]:
    """Whatever is neither a record, a sidecar nor the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            yield f"{path} is a link or a device; a submission holds plain files"
        elif path.is_file():
            here = path.parent == folder and path.name == MANIFEST
            if not (here or RECORD_NAME.fullmatch(path.name) or is_sidecar(path.name)):
                yield f"{path} has no place in a submission: records, tableaus, influences only"
            elif path.stat().st_size > MOST_BYTES[path.suffix]:
                yield f"{path} has more than {MOST_BYTES[path.suffix]:,} bytes"


def _sums(folder: Path) -> Iterator[str]:
    """Files that are not those of the manifest."""
    try:
        manifest = read_manifest(folder)
    except SolverBenchError as error:
        yield str(error)
        return
    if manifest.name != folder.name:
        yield f"{folder} holds the submission {manifest.name}; give the folder that name"
    lying = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for name in sorted({*manifest.files, *lying} - {MANIFEST}):
        path = folder / name
        if name not in manifest.files:
            yield f"{path} is not in the manifest"
        elif name not in lying:
            yield f"{shown(str(path))} is missing; the manifest names it"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != manifest.files[name]:
            yield f"{path} has another SHA-256 than the manifest says"


def _private(one: Committed) -> Iterator[str]:
    """Texts of a record or its tableau that name a place on a machine or hold a link."""
    values: list[object] = [json.loads(one.path.read_bytes())]
    try:
        if one.tableau.exists():
            stored = read_tensors(one.tableau)
            values.append(stored.facts)
            if stored.form != TABLEAU_FORMAT:
                yield f"{one.tableau} is no tableau"
    except SolverBenchError:
        pass  # told by faults_of
    for value in values:
        for where, text in _texts(value, ""):
            if fault := _unfit(text):
                yield f"{one.path}: {where} {fault}: {shown(text, 60)}"
                return


def _unfit(text: str) -> str:
    """Why a text must not be published; empty where it may."""
    if len(text) > LONGEST or not text.isprintable():
        return "is too long or cannot be printed"
    if LINK.search(text):
        return "holds a link or markup"
    return "names a place on a machine" if PLACE.search(text) else ""


def _texts(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Every text in JSON values, keys too, with its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield where, str(key)
            yield from _texts(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, where)

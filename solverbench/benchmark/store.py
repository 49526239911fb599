"""Records on disk: one JSON file a cell, written aside and renamed. No torch here."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from solverbench.benchmark.results import OF_A_MEAN, OVER_ROWS, SCHEMA, Result
from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError
from solverbench.files import write_bytes, write_text

RECORD_NAME = re.compile(r"nfe\d{2,}-[0-9a-f]{12}\.json")
INFLUENCES = ".influence.safetensors"  # ends the name of the file beside a record
MEANS = (OF_A_MEAN, OVER_ROWS)
AGREE = 1e-3  # of an error: how far a record may be from the influences beside it
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_writable(folder: Path) -> None:
    """Make the folder and write a small file in it, so that a fault shows before a slow run.

    Raises:
        SolverBenchError: if either fails.
    """
    probe = folder / f".writable.{os.getpid()}.tmp"
    try:
        write_bytes(probe, b"solverbench")
        probe.unlink()
    except (OSError, SolverBenchError) as error:
        cause = error.__cause__ if isinstance(error, SolverBenchError) else error
        reason = getattr(cause, "strerror", None) or str(error)
        raise SolverBenchError(
            f"cannot write in {folder}: {reason}. Name a folder that can be made and written"
        ) from error


def record_path(root: Path, spec: RunSpec) -> Path:
    """Where the record of a cell lies: ``root/<backbone>/<solver>/nfe05-<key>.json``.

    Raises:
        SolverBenchError: if a plugin's name cannot be the name of a folder.
    """
    for name in (spec.backbone.name, spec.solver.name):
        if not FOLDER_NAME.fullmatch(name):
            raise SolverBenchError(
                f"'{name}' cannot name a folder; allowed are letters, digits, '-', '_' and '.', "
                "a letter or digit first. Rename the plugin"
            )
    return root / spec.backbone.name / spec.solver.name / f"nfe{spec.nfe:02d}-{spec.key()}.json"


Influence = NDArray[np.floating]  # (M,), what each image adds to a metric, in order of seeds
Influences = Callable[[Result, str], Influence | None]  # of a record and one of its metrics


def influence_path(record: Path) -> Path:
    """Where the influences of a record lie."""
    return record.with_suffix(INFLUENCES)


class StoredInfluences:
    """What lies beside the records of a folder, read when it is asked for.

    Args:
        root: a folder of records, or one record.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read = lru_cache(maxsize=256)(self._load)

    def __call__(self, result: Result, metric: str) -> Influence | None:
        """Influences (M,) of a metric; None where the record has none, or their file is gone.

        Raises:
            SolverBenchError: where the file cannot be read, is damaged, is of another run, or the
                record's numbers are not those that follow from it.
        """
        if not result.influences_sha256:
            return None
        name = influence_path(record_path(Path(), result.spec)).name
        found = self._read(name, result.influences_sha256).get(metric)
        if found is not None and (fault := _disagreement(result, metric, found)):
            raise SolverBenchError(
                f"the record of {name} does not agree with it: {fault}. The record was edited: "
                "delete both and run the cell again"
            )
        return found

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """All such files of the folder, by name: copies of a cell may lie in several places."""
        inside = self._root.parent.glob if self._root.is_file() else self._root.rglob
        found: dict[str, list[Path]] = {}
        for path in sorted(inside(f"nfe*{INFLUENCES}")):
            found.setdefault(path.name, []).append(path)
        return found

    def _load(self, name: str, sha256: str) -> dict[str, Influence]:
        paths = self._files.get(name, [])
        for path in paths:
            found, checksum = _read_influences(path)
            if checksum == sha256:
                return found
        if paths:
            raise SolverBenchError(
                f"{paths[0]} is damaged or of another run than its record. Delete it (no paired "
                "test then), or the record too and run the cell again"
            )
        return {}


def _read_influences(path: Path) -> tuple[dict[str, Influence], str]:
    """What ``tensorfile.write`` stored, and the checksum of what is there; empty if torn."""
    try:
        with safe_open(path, "numpy") as file:
            facts = (file.metadata() or {}).get("facts", "")
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return {}, ""
    return found, checksum_of(facts, found)


def checksum_of(facts: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """What ``tensorfile.write`` puts into the header of a file, computed without torch.

    Args:
        facts: the header's JSON text, as it stands there.
        tensors: by name.
    """
    digest = hashlib.sha256(facts.encode())
    for key in sorted(tensors):
        digest.update(f"{key} torch.{tensors[key].dtype} {tensors[key].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[key]).data)
    return digest.hexdigest()


def _disagreement(result: Result, metric: str, influence: Influence) -> str:
    """What a record says of a metric and its influences deny; empty where nothing."""
    facts, rows = result.metric_facts[metric], influence.astype(np.float64)
    if len(rows) < 2 or not np.isfinite(rows).all():
        return f"{len(rows)} influences of {metric}, not all usable"
    if facts.num_generated and facts.num_generated != len(rows):
        return f"{metric} of {facts.num_generated} rows, with {len(rows)} influences"
    digits = float(np.abs(rows).max()) * 1e-6  # of float32
    said, se = result.errors.get(metric), float(rows.std(ddof=1)) / math.sqrt(len(rows))
    if said is not None and not math.isclose(said, se, rel_tol=AGREE, abs_tol=digits):
        return f"its error of {metric} is {said:.6g}, that of the influences {se:.6g}"
    value, mean = result.metrics[metric], float(rows.mean())
    if facts.se_method in MEANS and not math.isclose(value, mean, rel_tol=0, abs_tol=digits):
        return f"its {metric} is {value:.6g}, the mean over images {mean:.6g}"
    return ""


def write_record(root: Path, result: Result) -> Path:
    """Store a record under its key; an older one of the same cell is replaced.

    Returns:
        The file written.

    Raises:
        SolverBenchError: if it cannot be written.
        ValueError: if a number is not finite; a missing number is a missing key.
    """
    try:
        text = json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False)
    except ValueError as error:
        numbers = [*result.metrics.items(), *result.errors.items()]
        bad = [name for name, value in numbers if not math.isfinite(value)]
        raise ValueError(f"a record holds finite numbers only; mend {bad or 'its cost'}") from error
    path = record_path(root, result.spec)
    write_text(path, text + "\n")
    return path


def read_record(path: Path) -> Result:
    """The record in a file.

    Raises:
        SolverBenchError: if the file cannot be read, is torn, was written for another schema, is
            no record at all, or holds impossible errors; one line that names the file.
    """
    redo = "Delete it and run the cell again"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise SolverBenchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise SolverBenchError(f"{path} is torn or not JSON ({_line(error)}). {redo}") from error
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if schema is None:
        raise SolverBenchError(f"{path} is not a solverbench record. Move it elsewhere")
    if schema != SCHEMA:
        raise SolverBenchError(
            f"{path} has schema_version {schema!r}; this solverbench reads {SCHEMA}. {redo}, "
            "or read it with the version that wrote it"
        )
    try:
        result = Result.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SolverBenchError(
            f"{path} is not a valid record: {where}: {_line(first['msg'])}. {redo}"
        ) from error
    if fault := _fault(result):
        raise SolverBenchError(f"{path} is not a valid record: {fault}. {redo}")
    return result


def _fault(result: Result) -> str:
    """What no cell that was measured can hold; empty where nothing."""
    for name in result.metrics:
        if name not in result.metric_facts:
            return f"metric_facts.{name}: missing, though metrics has {name}"
    for name, se in result.errors.items():
        if name not in result.metrics:
            return f"errors.{name}: metrics has no {name}"
        if se < 0:
            return f"errors.{name}: must be at least 0; got {se}"
    return ""


def read_records(root: Path) -> list[Result]:
    """All records below a folder, in the order of their paths; other files are passed over.

    Raises:
        SolverBenchError: if there is no such folder, no record in it, or a record cannot be read.
    """
    if not root.is_dir():
        raise SolverBenchError(f"no folder {root}. Run a recipe first, or name its output folder")
    paths = sorted(p for p in root.rglob("nfe*.json") if RECORD_NAME.fullmatch(p.name))
    if not paths:
        raise SolverBenchError(
            f"no records in {root} (files nfeNN-KEY.json). Run a recipe first, "
            "or name its output folder"
        )
    return [read_record(path) for path in paths]


def _line(fault: object) -> str:
    """A message in one line."""
    return " ".join(str(fault).split())

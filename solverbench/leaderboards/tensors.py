"""Our safetensors files read without torch: tensors, facts, and whether the checksum fits."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from solverbench.benchmark.results import Result
from solverbench.benchmark.store import checksum_of
from solverbench.errors import SolverBenchError

TABLEAU = "solverbench-tableau-1"
INFLUENCE = "solverbench-influence-1"
HEADER = {"format", "facts", "sha256"}  # texts in the header of a file of ours


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file of ours holds.

    Attributes:
        form: name and version of its layout.
        tensors: by name.
        facts: JSON values of its header.
        sha256: checksum of tensors and facts.
    """

    form: str
    tensors: dict[str, NDArray[Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def read_tensors(path: Path) -> Stored:
    """Read a file that ``solverbench.tensorfile`` wrote.

    Raises:
        SolverBenchError: where it cannot be read, has other texts in its header than ours, or its
            checksum does not fit.
    """
    try:
        with safe_open(path, "numpy") as file:
            head = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(head.get("facts", ""))
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise SolverBenchError(f"{path} is torn or no file of solverbench") from error
    if set(head) != HEADER or not isinstance(facts, dict):
        raise SolverBenchError(f"{path} is no file of solverbench: its header has other texts")
    if checksum_of(head["facts"], tensors) != head["sha256"]:
        raise SolverBenchError(f"{path} is damaged: its checksum does not fit")
    return Stored(head["format"], tensors, facts, head["sha256"])


def tableau_fault(path: Path, result: Result) -> str:
    """Why the table in a file is not that of a record; empty where it is.

    Args:
        path: beside the record.
        result: the record, which went well.
    """
    try:
        found = read_tensors(path)
    except SolverBenchError as error:
        return str(error)
    A, tau, nodes = (found.tensors.get(key, np.zeros(0)) for key in ("A", "tau", "nodes"))
    calls = len(tau) if tau.ndim == 1 else -1
    if found.form != TABLEAU or len(found.tensors) != 3 or A.shape != (calls + 1, calls + 1):
        return f"{path} is no tableau"
    if not (np.isfinite(A).all() and np.isfinite(tau).all()) or np.triu(A, 1).any():
        return f"{path} is no tableau: its table is not finite or not lower triangular"
    counted = result.cost.nfe if result.cost else result.spec.nfe
    if calls != counted:
        return f"{path} makes {calls} network calls a sample; its record counted {counted}"
    said = [result.conventions.get(key) for key in ("t", "t_eval")]
    if said != [nodes.tolist(), tau.tolist()]:
        return f"{path} is of another run: its times are not those of its record"
    return ""

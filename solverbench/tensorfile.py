"""Checked safetensors: a format name, JSON facts and a checksum in the header of every file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from solverbench.errors import SolverBenchError
from solverbench.files import write_bytes


def write(path: Path, form: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors with facts and a checksum, aside first and then renamed.

    Args:
        path: where.
        form: name and version of the layout, for example ``solverbench-tableau-1``.
        tensors: any.
        facts: JSON values.
    """
    host = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(facts)
    write_bytes(path, save(host, {"format": form, "facts": text, "sha256": _digest(host, text)}))


def read(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote.

    Returns:
        Tensors and facts.

    Raises:
        SolverBenchError: for a missing, torn or foreign file, one of another version, or one whose
            checksum does not fit; one line that names the file.
    """
    if not path.is_file():
        raise SolverBenchError(f"{path} is missing: a {form} file belongs there")
    try:
        data = path.read_bytes()  # once: opened twice, a file just replaced would be half old
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (OSError, SafetensorError) as error:
        raise SolverBenchError(f"{path} cannot be read as {form}: {error}") from error
    found = head.get("format")
    if (
        found is None
        or not {"facts", "sha256"} <= set(head)
        or not found.startswith(form.rpartition("-")[0])
    ):
        raise SolverBenchError(f"{path} is no {form} file of solverbench")
    if found != form:
        raise SolverBenchError(f"{path} has layout {found}; this solverbench reads {form}")
    if head.get("sha256") != _digest(tensors, head["facts"]):
        raise SolverBenchError(f"{path} is damaged: its checksum does not fit; make it again")
    return tensors, json.loads(head["facts"])


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()

"""Features of files, kept between runs under the hash of everything they depend on."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from solverbench import tensorfile, weights
from solverbench.errors import SolverBenchError
from solverbench.images import Extractor

FOLDER = "SOLVERBENCH_FEATURES"
FORMAT = "solverbench-features-1"


def folder() -> Path:
    """``SOLVERBENCH_FEATURES``, else ``features`` beside the folder of published files.

    Raises:
        SolverBenchError: where the user has no home folder and none is named.
    """
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser().absolute()
    return weights.folder().with_name("features")


def key_of(extractor: Extractor, digests: Iterable[str], quantisation: str = "none") -> str:
    """SHA-256 over the network, how it is run, and the images in their order.

    Args:
        extractor: its name, weights, resize rule, channels, precision and batch count.
        digests: of the images.
        quantisation: rule by which they became 8-bit images; ``none`` for files.
    """
    traits = extractor.traits
    parts = [extractor.name, extractor.sha256, traits.resize, traits.precision, quantisation]
    parts += [str(traits.channels), str(traits.batch), *digests]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load(key: str) -> dict[str, Tensor] | None:
    """What ``store`` kept; None where nothing is kept, or what is there is damaged or foreign."""
    try:
        tensors, facts = tensorfile.read(path_of(key), FORMAT)
    except SolverBenchError:
        return None  # it will be made anew
    return tensors if facts.get("key") == key else None


def store(key: str, rows: dict[str, Tensor]) -> Path:
    """Keep features.

    Raises:
        SolverBenchError: where the folder cannot be written; says which variable names another.
    """
    path = path_of(key)
    try:
        tensorfile.write(path, FORMAT, rows, {"key": key})
    except SolverBenchError as error:
        raise SolverBenchError(f"{error} in {FOLDER}, or use --no-cache") from error
    return path


def path_of(key: str) -> Path:
    """Where features of a key are kept, whether they are there or not."""
    return folder() / key[:2] / f"{key}.safetensors"

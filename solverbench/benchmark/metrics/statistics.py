"""Files of reference statistics: those of EDM and ADM are read, our own written and read."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from solverbench.benchmark.metrics.base import as_rows
from solverbench.errors import SolverBenchError
from solverbench.files import write_bytes
from solverbench.images import Moments

FORMAT_VERSION = 1
SYMMETRY = 1e-6  # largest difference of sigma and its transpose, relative to its largest entry


def read_statistics(path: Path) -> Moments:
    """Moments from an ``.npz`` file with arrays ``mu`` and ``sigma``.

    Nothing else is read: files in ADM's format hold gigabytes of images beside them.

    Args:
        path: a file of EDM or ADM, or one that ``write_statistics`` made.

    Returns:
        The moments, float64; ``num`` is 0 where the file does not say.

    Raises:
        SolverBenchError: for a missing, torn or foreign file, wrong shapes, NaN or infinity, a
            covariance that is not symmetric or has no variance; one line that names the file.
    """
    try:
        with _opened(path) as file:
            version = int(file["format_version"]) if "format_version" in file else FORMAT_VERSION
            if version > FORMAT_VERSION:
                raise ValueError(f"layout {version} is newer than this solverbench; update it")
            mu, sigma = (torch.from_numpy(_floats(file, key)) for key in ("mu", "sigma"))
            num = int(file["num_images"]) if "num_images" in file else 0
            extractor = str(file["extractor"]) if "extractor" in file else ""
        _validate(mu, sigma)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SolverBenchError(f"{path} is no file of reference statistics: {error}") from error
    return Moments(mu, sigma, num, extractor)


def read_features(path: Path) -> Tensor | None:
    """Feature rows (M, D) that a file of statistics may carry; None where it has none.

    Raises:
        SolverBenchError: for a missing, torn or foreign file, or rows that cannot be used.
    """
    try:
        with _opened(path) as file:
            return as_rows(file["features"]) if "features" in file else None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SolverBenchError(f"{path} holds no usable features: {error}") from error


def write_statistics(path: Path, moments: Moments, features: Tensor | None = None) -> None:
    """Write moments so that EDM's code and ours can read them.

    Args:
        path: where, ending in ``.npz``; written aside and renamed.
        moments: with ``num`` and ``extractor``.
        features: rows (M, D), stored as float32, for metrics that need them.

    Raises:
        SolverBenchError: where the file cannot be written.
        ValueError: for moments that ``read_statistics`` would refuse.
    """
    _validate(moments.mu, moments.sigma)
    held: dict[str, Any] = {
        "mu": moments.mu.double().numpy(),
        "sigma": moments.sigma.double().numpy(),
        "num_images": moments.num,
        "extractor": moments.extractor,
        "format_version": FORMAT_VERSION,
    }
    if features is not None:
        held["features"] = as_rows(features).float().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **held)
    write_bytes(path, buffer.getvalue())


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """The archive; its arrays are read one by one, when they are asked for."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise SolverBenchError(f"cannot read {path}: {error.strerror or error}") from error
    with raw:  # numpy leaves a file open that it cannot read
        file = np.load(raw, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("it is a single array; an .npz archive with mu and sigma is needed")
        with file:
            yield file


def _floats(file: NpzFile, key: str) -> np.ndarray:
    if key not in file:
        raise ValueError(f"it has no array '{key}'; it holds {', '.join(file.files) or 'nothing'}")
    return np.asarray(file[key], dtype=np.float64)


def _validate(mu: Tensor, sigma: Tensor) -> None:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"mu must be (D,) and sigma (D, D); got {tuple(mu.shape)} and {tuple(sigma.shape)}"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("mu or sigma holds NaN or infinity")
    if not sigma.trace() > 0:
        raise ValueError("the trace of sigma is not positive, so the images do not vary")
    if (sigma - sigma.T).abs().max() > SYMMETRY * sigma.abs().max():
        raise ValueError("sigma is not symmetric")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import solverbench

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
Golden = Callable[[str], tuple[Tensor, Tensor, dict[str, float]]]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """Generated rows, reference rows and expected values of a set."""

    def load(name: str) -> tuple[Tensor, Tensor, dict[str, float]]:
        with np.load(GOLDENS / f"{name}.npz") as file:
            values = {key: float(file[key]) for key in file.files if file[key].ndim == 0}
            return torch.from_numpy(file["fake"]), torch.from_numpy(file["real"]), values

    return load

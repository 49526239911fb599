"""The same features through torch-fidelity's own front door."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from solverbench.benchmark import metrics as m
from solverbench.images import moments

NAME = "rows"  # of the extractor, in their registry
SUBSETS, SUBSET_SIZE, K = 20, 100, 3
SETS = {  # generated rows, reference rows, dimensions, offset
    "full rank": (300, 400, 24, 0.0),
    "equal numbers": (256, 256, 16, 0.0),
    "far from zero": (300, 260, 12, 30.0),
    "fewer rows than dimensions": (150, 120, 200, 0.0),
}


class Rows(Dataset[Tensor]):
    """Feature rows in the place of images."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


@pytest.fixture(scope="session")
def torch_fidelity() -> Any:
    """The package, with an extractor that gives back what it gets.

    A CPU-only torch cannot load the registry's torchvision, which torch-fidelity imports
    (pytorch/vision#9085); on any other torch a failing import is a failing test.
    """
    if find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: pip install 'solverbench[test]'")
    try:
        import torch_fidelity
    except (ImportError, RuntimeError) as error:
        if torch.version.cuda is not None:
            raise
        pytest.skip(f"torch-fidelity does not load with this CPU-only torch: {error}")
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if NAME not in FEATURE_EXTRACTORS_REGISTRY:  # a name is taken once a process
        torch_fidelity.register_feature_extractor(NAME, identity())
    return torch_fidelity


def identity() -> type[nn.Module]:
    """An extractor as torch-fidelity wants it."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Identity(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (NAME,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return NAME

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, rows: Tensor) -> tuple[Tensor]:
            return (rows,)

    return Identity


def sets(name: str) -> tuple[Tensor, Tensor]:
    """Skewed rows, not negative but for an offset, like those of a network."""
    num, others, dim, offset = SETS[name]
    rng = torch.Generator().manual_seed(len(name))
    mix = torch.randn(dim, dim, generator=rng) / dim**0.5
    x, y = (torch.randn(rows, dim, generator=rng) @ mix for rows in (num, others))
    return (1.1 * x + 0.1).relu() + offset, y.relu() + offset


def theirs(torch_fidelity: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """FID, KID, precision and recall; all options that it would guess are given."""
    found: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=Rows(x),
        input2=Rows(y),
        feature_extractor=NAME,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET_SIZE,
        prc_neighborhood=K,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return found


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_four_metrics_are_those_of_torch_fidelity(
    torch_fidelity: Any, name: str, dtype: torch.dtype
) -> None:
    """Theirs computes KID and the mean of FID in the type of the rows, ours in float64."""
    x, y = (rows.to(dtype) for rows in sets(name))
    wanted = theirs(torch_fidelity, x, y)
    single = dtype == torch.float32
    traces = sum(float(moments(rows).sigma.trace()) for rows in (x, y))
    fid = m.frechet_distance(generated=x, reference=y)
    # without full rank, roots of rounded zeros bias theirs by up to 1e-5 of the traces
    within = 1e-5 if single or fid.flags else 1e-10
    assert fid.value == pytest.approx(
        wanted["frechet_inception_distance"], rel=0, abs=within * (1 + traces)
    )
    kid = m.kernel_distance(generated=x, reference=y, subsets=SUBSETS, subset_size=SUBSET_SIZE)
    size = float(np.mean((y.double() @ y.double().T / y.shape[1] + 1).pow(3).numpy()))
    within = (1e-6 if single else 1e-12) * size  # differences of kernels of this size
    assert kid.value == pytest.approx(wanted["kernel_inception_distance_mean"], rel=0, abs=within)
    assert kid.std == pytest.approx(wanted["kernel_inception_distance_std"], rel=0, abs=within)
    shares = m.precision_recall(generated=x, reference=y, k=K, convention="kynkaanniemi")
    # a share is one integer over M; on these rows no pair is so near a tie that float32 errs
    assert shares.precision.value == pytest.approx(wanted["precision"], rel=1e-6)
    assert shares.recall.value == pytest.approx(wanted["recall"], rel=1e-6)


def test_the_sets_can_tell_the_two_sides_apart() -> None:
    """A swapped side would show: precision and recall differ, and neither is 0 or 1."""
    for name in SETS:
        x, y = sets(name)
        found = m.precision_recall(generated=x, reference=y, k=K, convention="kynkaanniemi")
        assert 0 < found.recall.value < 1
        assert 0 < found.precision.value < 1
        assert found.precision.value != pytest.approx(found.recall.value, abs=0.02)

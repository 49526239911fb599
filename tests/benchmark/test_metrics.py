import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import solverbench
from solverbench.benchmark.distances import L1, L2, Feature
from solverbench.benchmark.features import reference_of
from solverbench.benchmark.metrics.frechet import (
    FD,
    FDTeacher,
    FDTexture,
    from_moments,
    from_rows,
)
from solverbench.benchmark.metrics.neighbours import Precision, Recall, covered
from solverbench.benchmark.metrics.paired import RMSETeacher
from solverbench.errors import SolverBenchError
from solverbench.images import Extractor, Features, Reference, Stages, moments

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
SETS = [
    "duplicates",
    "gauss_unequal",
    "integer_grid",
    "n_lt_d",
    "near_identical",
    "outlier_real",
    "relu_equal",
    "same_distribution",
    "tiny",
]


def golden(name: str) -> tuple[Tensor, Tensor, dict[str, float]]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        values = {key: float(file[key]) for key in file.files if file[key].ndim == 0}
        return torch.from_numpy(file["fake"]), torch.from_numpy(file["real"]), values


def rows(seed: int, num: int = 40, dim: int = 6) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def features(embedding: Tensor, images: Tensor | None = None) -> Features:
    return Features(embedding=embedding, texture=embedding, images=images)


@pytest.mark.parametrize("name", SETS)
def test_frechet_distance_equals_the_golden_value_by_both_paths(name: str) -> None:
    generated, reference, values = golden(name)
    a, b = moments(generated), moments(reference)
    traces = float(a.sigma.trace() + b.sigma.trace())
    within = 1e-9 * (1 + traces)  # the goldens' own target: float64 with a wide margin
    assert from_moments(a, b) == pytest.approx(values["fd.exact"], rel=0, abs=within)
    assert from_rows(generated, reference) == pytest.approx(values["fd.exact"], rel=0, abs=within)


@pytest.mark.parametrize("metric", [FD(), FDTeacher(), FDTexture()])
@pytest.mark.parametrize("name", ["n_lt_d", "relu_equal"])
def test_every_frechet_metric_gives_the_golden_value(
    metric: FD | FDTeacher | FDTexture, name: str
) -> None:
    generated, reference, values = golden(name)
    value = metric.compute(
        generated=features(generated), reference=reference_of(features(reference), "golden")
    )
    assert value == pytest.approx(values["fd.exact"], rel=1e-9)  # far above float64 rounding


def test_moments_do_not_depend_on_the_block_and_agree_with_numpy() -> None:
    x = rows(0, num=101) + 300  # an offset like that of pooled features
    expected = np.cov(x.double().numpy().T)
    for block in (7, 50, 1000):
        found = moments(x, block)
        np.testing.assert_allclose(found.sigma.numpy(), expected, rtol=0, atol=1e-12)  # float64
        np.testing.assert_allclose(found.mu.numpy(), x.double().mean(0).numpy(), rtol=1e-14)


def test_frechet_distance_is_zero_for_equal_sets_and_symmetric() -> None:
    x, y = moments(rows(0)), moments(rows(1) * 2)
    assert 0 <= from_moments(x, x) <= 1e-12 * (1 + float(x.sigma.trace()))
    assert from_moments(x, y) == pytest.approx(from_moments(y, x), rel=1e-12)  # float64 rounding


def test_frechet_distance_of_a_shifted_copy_is_the_squared_shift() -> None:
    x = rows(0).double()
    assert from_rows(x + 0.5, x) == pytest.approx(6 * 0.25, rel=1e-12)  # float64 rounding
    assert from_moments(moments(x + 0.5), moments(x)) == pytest.approx(1.5, rel=1e-12)


def test_unusable_features_are_refused() -> None:
    x = rows(0)
    bad = x.clone()
    bad[3, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 40 feature rows hold NaN or infinity"):
        moments(bad)
    with pytest.raises(ValueError, match="M >= 2"):
        from_rows(x[:1], x)
    with pytest.raises(ValueError, match="dimensions"):
        from_moments(moments(x), moments(x[:, :3]))
    with pytest.raises(ValueError, match="dimensions"):
        from_rows(x, x[:, :3])
    with pytest.raises(ValueError, match="k=5 nearest neighbours need more than 5 rows; got 5"):
        covered(x, x[:5])


def test_precision_and_recall_swap_with_the_sets_and_use_equal_numbers() -> None:
    x, y = features(rows(0, 60)), features(1.5 * rows(1, 50))
    a, b = reference_of(x, "a"), reference_of(y, "b")
    assert Precision().compute(generated=x, reference=b) == Recall().compute(
        generated=y, reference=a
    )
    cut = features(x.embedding[:50])
    assert Precision().compute(generated=x, reference=b) == Precision().compute(
        generated=cut, reference=b
    )
    only_moments = Reference(a.embedding, a.texture, None, "", "")
    with pytest.raises(ValueError, match="rows"):
        Recall().compute(generated=x, reference=only_moments)


def test_rmse_is_the_mean_over_images_of_their_own_rmse() -> None:
    images = torch.zeros(40, 1, 2, 2)
    moved = images.clone()
    moved[0] = 0.4
    found = RMSETeacher().compute(
        generated=features(rows(0), moved), reference=reference_of(features(rows(1), images), "")
    )
    assert found == pytest.approx(0.4 / 40, rel=1e-7)  # 0.4 is rounded to float32
    with pytest.raises(ValueError, match="images of both sides"):
        RMSETeacher().compute(
            generated=features(rows(0)), reference=reference_of(features(rows(1)), "")
        )
    with pytest.raises(ValueError, match="equal shapes"):
        RMSETeacher().compute(
            generated=features(rows(0), moved[:3]),
            reference=reference_of(features(rows(1), images), ""),
        )


def test_labels_name_the_extractor_where_the_value_depends_on_it() -> None:
    metrics = (FD(), FDTeacher(), FDTexture(), Precision(), Recall(), RMSETeacher())
    labels = [metric.label("digits") for metric in metrics]
    assert labels[:3] == ["FD[digits]", "FD-T[digits]", "FD-texture[digits]"]
    assert labels[3:] == ["precision[digits]", "recall[digits]", "RMSE-T"]


class Half:
    def decode(self, x: Tensor) -> Tensor:
        return x / 2


class Plain(Extractor):
    name: str = "plain"
    sha256: ClassVar[str] = ""

    def available(self) -> tuple[bool, str]:
        return True, ""

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        flat = pixels.float().flatten(1)
        return {"embedding": flat, "texture": flat}

    def reference(self) -> Reference:
        return reference_of(features(rows(0)), "")


class Perceptive(Plain):
    def perceptual(self) -> Stages:
        return lambda x: [x, torch.relu(x[:, :, ::2])]


@pytest.mark.parametrize("distance", [L1(Half()), L2(Half()), Feature(Half(), Perceptive())])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_is_zero_for_equal_states_and_pulls_the_student_only(
    distance: L1 | L2 | Feature, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 3, 2, 4, 4, generator=rng, dtype=dtype).unbind()
    assert distance(target, target).tolist() == [0.0, 0.0, 0.0]
    student.requires_grad_()
    target.requires_grad_()
    value = distance(student, target)
    assert value.shape == (3,)
    assert value.dtype == dtype
    assert (value > 0).all()
    value.sum().backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).norm(dim=1) > 0).all()
    assert target.grad is None


def test_feature_distance_has_finite_gradients_where_activations_vanish() -> None:
    student = torch.zeros(2, 2, 4, 4, requires_grad=True)
    Feature(Half(), Perceptive())(student, torch.ones(2, 2, 4, 4)).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("extractor", [None, Plain()])
def test_feature_distance_without_a_network_says_what_to_use(extractor: Plain | None) -> None:
    with pytest.raises(SolverBenchError, match="use distance 'l1' or 'l2'"):
        Feature(Half(), extractor)

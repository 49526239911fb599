import math

import numpy as np
import pytest
import torch
from torch import Tensor

from solverbench.benchmark import metrics as m
from solverbench.benchmark.features import reference_of
from solverbench.benchmark.lpips import LPIPS
from solverbench.benchmark.metrics.paired import (
    L1Teacher,
    L2Teacher,
    LPIPSTeacher,
    PSNRTeacher,
    RMSETeacher,
    Undecoded,
)
from solverbench.images import Features


def images(seed: int, num: int = 70) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, 4, 4, generator=rng) * 2 - 1


def features(pixels: Tensor) -> Features:
    flat = pixels.flatten(1)
    return Features(embedding=flat, texture=flat, images=pixels)


def plain(name: str, x: Tensor, y: Tensor) -> np.ndarray:
    """Each image's value, by numpy."""
    difference = (x.double() - y.double()).numpy().reshape(len(x), -1)
    square = (difference**2).mean(axis=1)
    return {
        "l1": np.abs(difference).mean(axis=1),
        "l2": square,
        "rmse": np.sqrt(square),
        "psnr": 10 * np.log10(4 / square),
    }[name]


@pytest.mark.parametrize("name", ["l1", "l2", "rmse", "psnr"])
def test_a_difference_is_the_mean_over_images_with_its_error(name: str) -> None:
    x, y = images(0), images(1)
    found = m.image_difference(generated=x, teacher=y, measure=name)
    expected = plain(name, x, y)
    assert found.value == pytest.approx(expected.mean(), rel=1e-12)  # float64 rounding
    assert found.se == pytest.approx(expected.std(ddof=1) / math.sqrt(70), rel=1e-12)
    assert found.influence is not None
    np.testing.assert_allclose(found.influence, expected, rtol=1e-12)
    assert (found.num_generated, found.dim, found.flags) == (70, 48, ())


@pytest.mark.parametrize("name", ["l1", "l2", "rmse", "psnr"])
def test_the_difference_of_two_methods_has_its_own_error(name: str) -> None:
    teacher = images(0)
    a, b = teacher + 0.1 * images(1), teacher + 0.1 * images(1) + 0.01 * images(2)
    of = [m.image_difference(generated=g, teacher=teacher, measure=name) for g in (a, b)]
    found = m.paired_difference(*of)
    apart = plain(name, a, teacher) - plain(name, b, teacher)
    assert found.difference == pytest.approx(apart.mean(), rel=1e-9)  # differences of means
    assert found.se == pytest.approx(apart.std(ddof=1) / math.sqrt(70), rel=1e-9)
    assert found.se < of[0].se  # type: ignore[operator]
    assert found.significant == (abs(apart.mean()) > 1.96 * found.se)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("metric", "name"),
    [(L1Teacher(), "l1"), (L2Teacher(), "l2"), (RMSETeacher(), "rmse"), (PSNRTeacher(), "psnr")],
)
def test_metrics_give_what_the_functions_give(metric, name: str) -> None:
    x, y = images(0), images(1)
    found = metric.compute(generated=features(x), reference=reference_of(features(y), ""))
    expected = m.image_difference(generated=x, teacher=y, measure=name)
    assert found == expected.value
    assert metric.label("any") == f"{name.upper()}-T"
    assert metric.against == "teacher"
    assert metric.higher_is_better == (name == "psnr")


def test_identical_images_have_a_finite_psnr_that_is_flagged() -> None:
    x, y = images(0), images(1)
    y[3] = x[3]
    found = m.image_difference(generated=x, teacher=y, measure="psnr")
    assert found.influence is not None
    assert float(found.influence[3]) == pytest.approx(100)
    assert found.flags == ("capped",)
    assert m.image_difference(generated=x, teacher=y, measure="l2").flags == ()


def trunk(pixels: Tensor) -> list[Tensor]:
    return [pixels, pixels[:, :, ::2]]


def test_any_distance_can_be_measured_with_an_error() -> None:
    x, y = images(0, 4), images(1, 4)
    lpips = LPIPS(Undecoded(), trunk=trunk, heads=[torch.ones(1, 3, 1, 1)] * 2)
    found = m.image_difference(generated=x, teacher=y, measure=lpips)
    assert found.facts["measure"] == "LPIPS"
    assert found.influence is not None
    torch.testing.assert_close(found.influence, lpips(x, y).double(), rtol=1e-5, atol=0)  # float32


def test_lpips_to_the_teacher_demands_the_range_of_images(monkeypatch) -> None:
    x, y = images(0, 4), images(1, 4)
    lpips = LPIPS(Undecoded(), trunk=trunk, heads=[torch.ones(1, 3, 1, 1)] * 2)
    monkeypatch.setattr(LPIPSTeacher, "function", lambda self: lpips)
    found = LPIPSTeacher().compute(generated=features(x), reference=reference_of(features(y), ""))
    assert found == m.image_difference(generated=x, teacher=y, measure=lpips).value
    with pytest.raises(ValueError, match=r"in \[-1, 1\]; these look like \[0, 1\]"):
        LPIPSTeacher().compute(
            generated=features(x), reference=reference_of(features(y / 2 + 0.5), "")
        )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:69], r"equal shapes; got \(69, 3, 4, 4\) and \(70, 3, 4, 4\)"),
        (lambda x: x.index_fill(0, torch.tensor([3]), math.nan), "NaN or infinity"),
        (lambda x: x.index_fill(0, torch.tensor([3]), math.inf), "NaN or infinity"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(spoil, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m.image_difference(generated=spoil(images(0)), teacher=images(1))


def test_too_few_images_and_unknown_measures_are_refused() -> None:
    x = images(0)
    with pytest.raises(ValueError, match="unknown measure 'mse'; use one of l1, l2, rmse, psnr"):
        m.image_difference(generated=x, teacher=x, measure="mse")
    with pytest.raises(ValueError, match="at least two images; got 1"):
        m.image_difference(generated=x[:1], teacher=x[:1])
    bare = Features(embedding=x.flatten(1), texture=x.flatten(1))
    with pytest.raises(ValueError, match="RMSE-T needs the decoded images of both sides"):
        RMSETeacher().compute(generated=bare, reference=reference_of(features(x), ""))

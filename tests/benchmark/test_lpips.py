"""LPIPS: preparation and head equal the reference's, and what is missing is said in one line."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from solverbench.benchmark import lpips
from solverbench.benchmark.lpips import LPIPS, LPIPSNative, LPIPSNativeBfloat16, Trunk
from solverbench.errors import MissingWeightsError, SolverBenchError

GOLDEN = Path(lpips.__file__).parents[1] / "goldens" / "lpips.npz"
STAGES = range(5)


class Pixels:
    """States are images."""

    def decode(self, x: Tensor) -> Tensor:
        return x


def golden(*keys: str) -> list[Tensor]:
    with np.load(GOLDEN) as file:
        return [torch.from_numpy(file[key]) for key in keys]


def images(seed: int, channels: int = 3, size: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, size, size, generator=rng, dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def random_parts() -> tuple[Trunk, list[Tensor]]:
    """A trunk with random weights and positive heads: any number it gives is meaningless."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = Trunk()
    return trunk, [torch.full((1, stage[-1], 1, 1), 0.1) for stage in lpips.STAGES]


@pytest.fixture(scope="module")
def heads() -> list[Tensor]:
    try:
        importlib.metadata.distribution("lpips")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the linear weights come with the package lpips, which is not installed")
    return lpips.load_heads()


def test_images_are_resized_then_clipped_then_scaled_as_the_reference_does() -> None:
    given, index, clipped, scaled = golden(
        "pre.input", "pre.index", "pre.resized_clipped_at", "pre.scaled_at"
    )
    made = lpips.prepare(given)
    assert made.shape == (2, 3, 224, 224)
    here = (..., index[:, None], index[None, :])
    within = {"rtol": 0, "atol": 1e-5}  # the golden's own target: float32
    torch.testing.assert_close(made[here], clipped, **within)
    torch.testing.assert_close(lpips.scaled(made)[here], scaled, **within)


def test_the_head_equals_the_reference_layer_by_layer(heads: list[Tensor]) -> None:
    ours, theirs, layers = (
        golden(*(f"head.{part}.{i}" for i in STAGES)) for part in ("feat0", "feat1", "layer")
    )
    within = {"rtol": 1e-5, "atol": 1e-9}  # the golden's own target; a layer may be 0
    for a, b, head, layer in zip(ours, theirs, heads, layers, strict=True):
        torch.testing.assert_close(lpips.compare([a], [b], [head]), layer, **within)
    torch.testing.assert_close(lpips.compare(ours, theirs, heads), *golden("head.value"), **within)


def test_activations_that_all_vanish_have_finite_gradients() -> None:
    zero = torch.zeros(1, 4, 2, 2, requires_grad=True)
    lpips.compare(
        [zero.relu()], [torch.ones(1, 4, 2, 2)], [torch.ones(1, 4, 1, 1)]
    ).sum().backward()
    assert zero.grad is not None
    assert torch.equal(zero.grad, torch.zeros_like(zero))


@pytest.mark.parametrize("kind", [LPIPS, LPIPSNative])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_images_are_at_distance_zero_and_others_pull_the_student(
    kind: type[LPIPS], channels: int, random_parts: tuple[Trunk, list[Tensor]]
) -> None:
    trunk, weights = random_parts
    distance = kind(Pixels(), trunk=trunk, heads=weights)
    student, target = images(0, channels).requires_grad_(), images(1, channels).requires_grad_()
    assert torch.equal(distance(student, student), torch.zeros(2, dtype=torch.float64))
    found = distance(student, target)
    assert (found > 0).all()
    assert found.dtype == torch.float64
    found.sum().backward()
    assert student.grad is not None
    assert target.grad is None
    assert student.grad.isfinite().all()
    assert (student.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_a_trunk_in_bfloat16_gives_float32_distances_near_the_exact_ones(
    random_parts: tuple[Trunk, list[Tensor]],
) -> None:
    """8 bits a number, rounded 13 times in a row: percents."""
    trunk, weights = random_parts
    exact, short = (
        kind(Pixels(), trunk=trunk, heads=weights) for kind in (LPIPSNative, LPIPSNativeBfloat16)
    )
    student, target = images(0).float(), images(1).float()
    assert {a.dtype for a in short.activations(student)} == {torch.float32}
    wanted, found = exact(student, target), short(student, target)
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


@pytest.mark.parametrize("side", [32, lpips.WIDE])
def test_channels_last_is_for_wide_images_and_changes_rounding_only(
    side: int, random_parts: tuple[Trunk, list[Tensor]]
) -> None:
    trunk, weights = random_parts
    distance = LPIPSNative(Pixels(), trunk=trunk, heads=weights)
    found = distance.activations(images(0, 3, side))
    last = all(a.is_contiguous(memory_format=torch.channels_last) for a in found)
    assert last == (side >= lpips.WIDE)
    trunk.to(memory_format=torch.contiguous_format)
    plain = trunk(lpips.scaled(images(0, 3, side).float()))
    for a, b in zip(found, plain, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()  # float32, sums of up to 4608 products


def test_what_lies_outside_the_range_gets_no_gradient(
    random_parts: tuple[Trunk, list[Tensor]],
) -> None:
    trunk, weights = random_parts
    far = (images(0) + 5).requires_grad_()
    LPIPS(Pixels(), trunk=trunk, heads=weights)(far, images(1)).sum().backward()
    assert far.grad is not None
    assert torch.equal(far.grad, torch.zeros_like(far))


def test_images_that_lpips_cannot_compare_are_refused(
    random_parts: tuple[Trunk, list[Tensor]],
) -> None:
    trunk, weights = random_parts
    with pytest.raises(ValueError, match="1 or 3 channels; got 4"):
        LPIPS(Pixels(), trunk=trunk, heads=weights)(images(0, 4), images(1, 4))
    with pytest.raises(ValueError, match="16 pixels a side"):
        LPIPSNative(Pixels(), trunk=trunk, heads=weights)(images(0, 3, 8), images(1, 3, 8))


def test_a_missing_trunk_is_one_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SOLVERBENCH_VGG16", raising=False)
    monkeypatch.setenv("SOLVERBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeightsError, match="solverbench weights fetch vgg16"):
        lpips.load_trunk()
    monkeypatch.setenv("SOLVERBENCH_VGG16", str(tmp_path / "mine.pth"))
    with pytest.raises(SolverBenchError, match=r"mine\.pth is not there"):
        lpips.load_trunk()


def test_a_file_that_is_not_the_published_trunk_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setenv("SOLVERBENCH_VGG16", str(tmp_path / "other.pth"))
    with pytest.raises(SolverBenchError, match=r"SHA-256 starts with .*, not 397923af; copy"):
        lpips.load_trunk()


def test_a_missing_package_is_one_line_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(SolverBenchError, match=r"pip install 'solverbench\[lpips\]'"):
        LPIPS(Pixels())


def test_the_published_layout_of_the_trunk_is_read_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file in torchvision's naming and in the old format of torch, with a classifier to skip."""
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # convolutions among the layers
    meant = Trunk()
    state = {"classifier.0.weight": torch.zeros(2)}
    for number, layer in zip(numbers, meant.convolutions, strict=True):
        state |= {f"features.{number}.{k}": v for k, v in layer.state_dict().items()}
    path = tmp_path / "vgg.pth"
    torch.save(dict(sorted(state.items())), path, _use_new_zipfile_serialization=False)
    monkeypatch.setenv("SOLVERBENCH_VGG16", str(path))
    monkeypatch.setattr(lpips, "SHA256", "")
    read = lpips.load_trunk()
    for mine, theirs in zip(read.parameters(), meant.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad


@pytest.mark.hub
def test_with_the_published_trunk_noise_is_farther_than_a_shade(heads: list[Tensor]) -> None:
    try:
        trunk = lpips.load_trunk()
    except SolverBenchError as error:
        pytest.skip(str(error))
    distance, plain = LPIPS(Pixels(), trunk=trunk, heads=heads), images(0, 3, 64) * 0.1
    shade, noise = distance(plain + 0.02, plain), distance(images(1, 3, 64), plain)
    assert (distance(plain, plain) == 0).all()
    assert (shade > 0).all()
    assert (shade < noise).all()
    assert (noise < 1.5).all()  # values of natural images stay below one; noise is near it

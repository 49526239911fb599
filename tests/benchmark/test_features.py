from pathlib import Path

import numpy as np
import pytest
import torch

import solverbench
from solverbench.backbones.extractor import DigitsExtractor
from solverbench.benchmark import features
from solverbench.benchmark.features import (
    extracted,
    features_of,
    ready,
    reference_of,
    sampled_features,
)
from solverbench.benchmark.load import load_backbone
from solverbench.errors import SolverBenchError
from solverbench.images import Traits, quantise_adm, quantise_edm

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"


@pytest.mark.parametrize(("key", "quantise"), [("edm", quantise_edm), ("adm", quantise_adm)])
def test_quantisation_equals_the_golden_bytes(key: str, quantise: object) -> None:
    assert callable(quantise)
    with np.load(GOLDENS / "quantise.npz") as file:
        found = quantise(torch.from_numpy(file["x"]))
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.numpy(), file[key])


def test_features_keep_the_images_unquantised_and_read_the_quantised_ones() -> None:
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features_of(DigitsExtractor(), images)
    expected = DigitsExtractor().extract(quantise_edm(images))
    assert found.images is not None
    assert torch.equal(found.images, images)
    assert torch.equal(found.embedding, expected["embedding"])
    assert torch.equal(found.texture, expected["texture"])


def test_images_that_are_not_finite_are_refused() -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[2, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 4 images hold NaN or infinity"):
        features_of(DigitsExtractor(), images)


def test_a_reference_of_samples_carries_their_rows_and_a_hash_of_them() -> None:
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features_of(DigitsExtractor(), images)
    a, b = reference_of(found, "teacher"), reference_of(found, "teacher")
    other = reference_of(features_of(DigitsExtractor(), -images), "teacher")
    assert a.features is found
    assert a.embedding.num == 9
    assert a.sha256 == b.sha256 != other.sha256


class Recording(DigitsExtractor):
    """Remembers how many images each call saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def extract(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(len(pixels))
        return super().extract(pixels)


def drawn(num: int) -> torch.Tensor:
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("sizes", [[600], [1] * 7 + [593], [300, 300], [255, 1, 344], [512, 88]])
def test_parts_of_any_size_give_the_bits_of_one_part(sizes: list[int]) -> None:
    pixels, extractor = quantise_edm(drawn(600)), Recording()
    whole = DigitsExtractor().extract(pixels)
    found = extracted(extractor, torch.split(pixels, sizes))
    assert extractor.seen == [256, 256, 88]
    assert torch.equal(found["embedding"], whole["embedding"])
    assert torch.equal(found["texture"], whole["texture"])


def test_an_extractor_without_a_block_of_its_own_sees_all_images_at_once() -> None:
    class Whole(Recording):
        @property
        def traits(self) -> Traits:
            return Traits()

    extractor = Whole()
    extracted(extractor, torch.split(quantise_edm(drawn(50)), 7))
    assert extractor.seen == [50]
    with pytest.raises(ValueError, match="there are no images"):
        extracted(extractor, [])


@pytest.mark.parametrize("batch", [7, 64, 600])
def test_sampled_features_are_those_of_the_whole_set(batch: int, tmp_path: Path) -> None:
    backbone, states = load_backbone("digits"), drawn(300)
    expected = features_of(DigitsExtractor(), backbone.decode(states), backbone.quantisation)
    found, seconds = sampled_features(
        backbone, DigitsExtractor(), states, batch, tmp_path / "images"
    )
    assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(found.texture, expected.texture)
    assert found.images is not None
    assert expected.images is not None
    assert torch.equal(found.images, expected.images)
    assert seconds > 0
    assert not (tmp_path / "images").exists()
    bare, _ = sampled_features(backbone, DigitsExtractor(), states, batch, None)
    assert bare.images is None


def test_images_beyond_memory_lie_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IN_MEMORY", 1000)
    backbone, states, path = load_backbone("digits"), drawn(300), tmp_path / "work" / "images"
    found, _ = sampled_features(backbone, DigitsExtractor(), states, 64, path)
    assert found.images is not None
    assert torch.equal(found.images, backbone.decode(states))
    assert path.stat().st_size == 300 * 64 * 4


def test_an_extractor_that_cannot_run_says_so() -> None:
    with pytest.raises(SolverBenchError, match="did you mean 'digits'"):
        ready("digit")
    with pytest.raises(SolverBenchError, match="extractor digits has no option"):
        ready("digits", weights="x")

from pathlib import Path

import numpy as np
import pytest
import torch

from solverbench.backbones.extractor import DigitsExtractor
from solverbench.benchmark.features import features_of, reference_of
from solverbench.images import quantise_adm, quantise_edm

GOLDENS = Path(__file__).parents[1] / "data" / "metrics"


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

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from solverbench.backbones import classifying
from solverbench.backbones.datasets import Images, digits
from solverbench.backbones.extractor import (
    WEIGHTS,
    Cifar16Extractor,
    DigitsExtractor,
    EmbeddedExtractor,
    pack,
    unpack,
)
from solverbench.benchmark.distances import Feature
from solverbench.benchmark.metrics.frechet import FD, FDTexture
from solverbench.benchmark.metrics.neighbours import Precision, Recall
from solverbench.errors import SolverBenchError
from solverbench.images import Features, moments

SHIPPED = [(DigitsExtractor, (1, 8, 8), 144), (Cifar16Extractor, (3, 16, 16), 192)]
Kind = type[DigitsExtractor] | type[Cifar16Extractor]
parametrize = pytest.mark.parametrize


def noise(num: int, shape: tuple[int, ...]) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, *shape), generator=rng, dtype=torch.uint8)


def few() -> Images:
    all_digits = digits()
    pixels, labels = all_digits.held_out
    return replace(all_digits, pixels=pixels, labels=labels, held_out=(pixels[:100], labels[:100]))


@parametrize(("kind", "shape", "num_texture"), SHIPPED)
def test_features_are_finite_and_do_not_depend_on_what_else_is_extracted(
    kind: Kind, shape: tuple[int, ...], num_texture: int
) -> None:
    pixels = noise(300, shape)
    found = kind().extract(pixels)
    assert found["embedding"].shape == (300, 64)
    assert found["texture"].shape == (300, num_texture)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in found.values())
    again = kind().extract(pixels)
    first = kind().extract(pixels[:7])
    for key, value in found.items():
        assert torch.equal(value, again[key])
        # other batch sizes may take other convolution kernels: float32 rounding
        torch.testing.assert_close(first[key], value[:7], rtol=1e-4, atol=1e-5)


@parametrize(("kind", "shape", "num_texture"), SHIPPED)
def test_shipped_reference_fits_the_shipped_network(
    kind: Kind, shape: tuple[int, ...], num_texture: int
) -> None:
    extractor = kind()
    assert extractor.available() == (True, "")
    reference = extractor.reference()
    assert reference.embedding.sigma.shape == (64, 64)
    assert reference.texture.sigma.shape == (num_texture, num_texture)
    assert torch.equal(reference.embedding.sigma, reference.embedding.sigma.T)
    assert reference.features is not None
    assert len(reference.features.embedding) == min(2000, reference.embedding.num)
    found = extractor.extract(noise(100, shape))
    rows = Features(embedding=found["embedding"], texture=found["texture"])
    noisy = FD().compute(generated=rows, reference=reference)
    assert noisy > 10  # noise is far from the data
    assert FDTexture().compute(generated=rows, reference=reference) > 1
    assert Recall().compute(generated=rows, reference=reference) < 0.5
    # the cifar16 network is lenient to noise: docs/design/0004
    lenient = 0.5 if kind is DigitsExtractor else 0.75
    assert Precision().compute(generated=rows, reference=reference) < lenient


def test_shipped_digits_reference_is_that_of_the_digits() -> None:
    pixels = digits().pixels
    reference = DigitsExtractor().reference()
    found = DigitsExtractor().extract(pixels)
    rows = Features(embedding=found["embedding"], texture=found["texture"])
    # float32 convolutions differ between machines; sampling noise is about 0.1
    assert FD().compute(generated=rows, reference=reference) < 1e-4
    assert FDTexture().compute(generated=rows, reference=reference) < 1e-4


def test_shipped_digits_network_knows_its_held_out_digits() -> None:
    extractor = DigitsExtractor()
    found = classifying.accuracy_of(extractor.network, *digits().held_out)
    assert found == pytest.approx(extractor.facts["accuracy"]["metric"], abs=1 / 360)  # rounding
    assert found > 0.98


def test_shipped_accuracies_are_recorded() -> None:
    facts = Cifar16Extractor().facts
    assert facts["accuracy"]["metric"] >= 0.6
    assert facts["num_held_out"] == 10_000


def test_the_shipped_files_are_small() -> None:
    """8 MB for both backbones with extractors, references and cards; discriminators come on top."""
    sizes = {file.name: file.stat().st_size for file in WEIGHTS.iterdir()}
    judges = {name for name in sizes if name.endswith("-discriminator.safetensors")}
    assert len(judges) == 2
    assert sum(sizes[name] for name in judges) < 400_000
    assert sum(size for name, size in sizes.items() if name not in judges) < 8_000_000


PARTS = ("extractor", "reference")


@parametrize(("kind", "shape", "num_texture"), SHIPPED)
def test_perceptual_network_is_frozen_and_not_the_metric_network(
    kind: Kind, shape: tuple[int, ...], num_texture: int
) -> None:
    extractor = kind()
    trunk = extractor.perceptual()
    assert not any(p.requires_grad for p in trunk.parameters())
    widths = [stage[0].out_channels for stage in trunk.stages]  # type: ignore[index]
    assert widths != [s[0].out_channels for s in extractor.network.trunk.stages]  # type: ignore[index]

    class Same:
        def decode(self, x: torch.Tensor) -> torch.Tensor:
            return x

    student = noise(4, shape).double() / 127.5 - 1
    target = student.flip(0)
    student.requires_grad_()
    value = Feature(Same(), extractor)(student, target)
    value.sum().backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).norm(dim=1) > 0).all()
    assert (value > 0).all()


def test_images_of_another_shape_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match="extractor digits reads uint8"):
        DigitsExtractor().extract(noise(2, (3, 16, 16)))
    with pytest.raises(ValueError, match="extractor digits reads uint8"):
        DigitsExtractor().extract(torch.zeros(2, 1, 8, 8))


def test_missing_files_are_named(tmp_path: Path) -> None:
    extractor = EmbeddedExtractor("digits", tmp_path)
    able, reason = extractor.available()
    assert not able
    assert "digits-extractor.safetensors is missing" in reason
    with pytest.raises(SolverBenchError, match="is missing"):
        extractor.extract(noise(1, (1, 8, 8)))


def test_training_is_reproducible_and_its_files_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(classifying.RECIPES["digits"], epochs=3, shift=1, flip=True)
    monkeypatch.setitem(classifying.RECIPES, "digits", short)
    reports: list[tuple[int, float]] = []
    images = few()
    tensors, facts = classifying.train_extractor("digits", images, lambda *r: reports.append(r))
    again, _ = classifying.train_extractor("digits", images, lambda *r: None)
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    assert facts["num_images"] == 260  # the held-out ones are left out
    assert len(reports) == 6
    classifying.write(tmp_path / "digits-extractor.safetensors", tensors, facts)
    reference = classifying.make_reference(images, tensors, facts)
    classifying.write(tmp_path / "digits-reference.safetensors", *reference)
    extractor = EmbeddedExtractor("digits", tmp_path)
    expected = moments(extractor.extract(images.pixels)["embedding"])
    assert torch.equal(extractor.reference().embedding.sigma, unpack(pack(expected.sigma)))
    assert not list(tmp_path.glob("*.tmp"))


def test_reference_of_other_weights_is_refused(tmp_path: Path) -> None:
    for name, source in (("extractor", "digits-extractor"), ("reference", "cifar16-reference")):
        target = tmp_path / f"digits-{name}.safetensors"
        target.write_bytes((WEIGHTS / f"{source}.safetensors").read_bytes())
    with pytest.raises(SolverBenchError, match="belongs to other weights"):
        EmbeddedExtractor("digits", tmp_path).reference()


def test_unknown_recipe_is_named() -> None:
    with pytest.raises(SolverBenchError, match="unknown extractor recipe 'cifar'"):
        classifying.recipe_of("cifar")

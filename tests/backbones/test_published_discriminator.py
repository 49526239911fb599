"""Published R3GAN discriminators against the outputs of the original code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from solverbench.backbones.published_discriminator import load_published
from solverbench.errors import SolverBenchError
from tests.backbones.emit import Call, Label, emit, fixture_file, goldens

SUMS = {"r3gan-tiny-cifar10": "_feature_sum", "r3gan-tiny-ffhq64": ""}  # embedding left out


def close(value: Tensor | None, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SUMS)
def test_scores_meet_the_original_in_both_precisions(name: str, tmp_path: Path) -> None:
    """Both generations of class paths; bfloat16 on a CPU is bit-stable to 7e-6."""
    path, golden, end = fixture_file(f"{name}.pkl", tmp_path), goldens(name), SUMS[name]
    close(load_published(path)(golden["x"]), golden[f"logits_fp32{end}"])
    scores = load_published(path, "stored")(golden["x"])
    assert scores.dtype == torch.float32
    close(scores, golden[f"logits_as_stored{end}"])


def test_features_of_every_stage_meet_the_original(tmp_path: Path) -> None:
    made = load_published(fixture_file("r3gan-tiny-cifar10.pkl", tmp_path))
    golden = goldens("r3gan-tiny-cifar10")
    x = made.ExtractionLayer(golden["x"][:1])
    for i, stage in enumerate(made.MainLayers):
        x = stage(x)
        close(x, golden[f"stage{i}_out_fp32"])


def test_gradient_penalty_and_its_gradient_meet_the_original(tmp_path: Path) -> None:
    made = load_published(fixture_file("r3gan-tiny-ffhq64.pkl", tmp_path))
    golden = goldens("r3gan-tiny-ffhq64")
    x = golden["x"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
    r1 = slope.square().flatten(1).sum(1)
    close(r1, golden["r1_fp32"])
    r1.mean().backward()  # type: ignore[no-untyped-call]
    close(weight(made.ExtractionLayer).grad, golden["r1_mean_grad_extraction_weight"])
    block = made.get_submodule("MainLayers.0.Layers.0.LinearLayer2")
    close(weight(block).grad, golden["r1_mean_grad_first_linear2_weight"])


def weight(convolution: nn.Module) -> nn.Parameter:
    """The weight of a convolution."""
    return convolution.get_parameter("Layer.weight")


def test_the_stored_precision_can_be_trained(tmp_path: Path) -> None:
    made = load_published(fixture_file("r3gan-tiny-cifar10.pkl", tmp_path), "stored")
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
    (slope.square().sum() + made(x).sum()).backward()
    grads = [p.grad for p in made.parameters()]
    assert all(g is not None and g.dtype == torch.float32 for g in grads)
    assert all(bool(g.isfinite().all()) for g in grads if g is not None)
    assert all(p.requires_grad for p in made.parameters())


def test_what_is_no_discriminator_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="is missing"):
        load_published(tmp_path / "no.pkl")
    path = fixture_file("r3gan-tiny-cifar10.pkl", tmp_path)
    with pytest.raises(ValueError, match="allowed"):
        load_published(path, "half")  # type: ignore[arg-type]
    for content, why in (
        ({"G": None}, "under 'D'"),
        ({"D": Call(Label("R3GAN.Networks", "Discriminator"), ())}, "is called"),
        ({"D": Label("training.networks", "Payload")}, "Payload"),
    ):
        path.write_bytes(emit(content))
        with pytest.raises(SolverBenchError, match=why):
            load_published(path)

"""Published R3GAN discriminators against the outputs of the original code."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import solverbench as sb
from solverbench import weights
from solverbench.backbones import edm_files
from solverbench.backbones.edm import EDM
from solverbench.backbones.edm_preconditioning import build
from solverbench.discriminator import save
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.published_discriminator import load_file, load_published
from solverbench.solvers import Batch, FitTask, Setting, sample
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.gas import GAS, Adversarial
from tests.backbones.emit import Call, Label, emit, fixture_file, goldens

SUMS = {"r3gan-tiny-cifar10": "_feature_sum", "r3gan-tiny-ffhq64": ""}  # embedding left out


def close(value: Tensor | None, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-5)


def close_in_bfloat16(value: Tensor, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures for bfloat16 on another device.

    Processors with arithmetic of bfloat16 agree to 7e-6, one without it differed by 2e-2.
    """
    torch.testing.assert_close(value, wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SUMS)
def test_scores_meet_the_original_in_both_precisions(name: str, tmp_path: Path) -> None:
    """Both generations of class paths."""
    path, golden, end = fixture_file(f"{name}.pkl", tmp_path), goldens(name), SUMS[name]
    close(load_published(path)(golden["x"]), golden[f"logits_fp32{end}"])
    scores = load_published(path, "stored")(golden["x"])
    assert scores.dtype == torch.float32
    close_in_bfloat16(scores, golden[f"logits_as_stored{end}"])
    assert not torch.equal(scores, load_published(path)(golden["x"]))


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


@pytest.mark.parametrize("precision", ["float32", "stored"])
@pytest.mark.parametrize("name", SUMS)
def test_converted_files_give_the_same_scores(name: str, precision: str, tmp_path: Path) -> None:
    path, converted = fixture_file(f"{name}.pkl", tmp_path), tmp_path / "d.safetensors"
    save(converted, load_published(path, "stored"), {}, torch.float32)
    x, files = goldens(name)["x"], (path, converted)
    made = [sb.load_discriminator("r3gan", weights=f, precision=precision) for f in files]
    scores = [each.logits(x.double()) for each in made]
    assert torch.equal(*scores)
    assert (scores[0].shape, scores[0].dtype) == ((len(x),), torch.float32)
    golden, fits = ("fp32", close) if precision == "float32" else ("as_stored", close_in_bfloat16)
    fits(scores[0], goldens(name)[f"logits_{golden}{SUMS[name]}"])
    assert len(made[1].trainable_parameters()) == len(list(made[0].parameters()))


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


SIZES = {"img_resolution": 32, "img_channels": 3, "model_channels": 8, "num_blocks": 1}
SONG = {"model_type": "SongUNet", "channel_mult": [1, 1, 1, 1], "attn_resolutions": [4]}


@cache
def pixels(folder: Path) -> tuple[EDM, Batch]:
    """A random network for 3 x 32 x 32, of a file, and teacher pairs."""
    keywords = SIZES | SONG
    network = build("EDMPrecond", keywords).to_empty(device="cpu")
    rng = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        fan = max(1, value[0].numel()) if value.ndim > 1 else 4
        value.copy_(torch.randn(value.shape, generator=rng) / fan**0.5)
    facts = edm_files.Facts("EDMPrecond", keywords, 0.0, None, "float32", "", "")
    edm_files.save_network(folder / "edm.safetensors", network, facts)
    made = EDM(weights=str(folder / "edm.safetensors"))
    noise = made.noise(range(2))
    teacher = DPMpp3M(Setting(made.schedule, 12, made.output)).tableau()
    with torch.no_grad():
        target = sample(made, teacher, noise)
    return made, Batch(noise, target, None, torch.arange(2))


def adversary(backbone: EDM, **options: Any) -> tuple[GAS, Adversarial]:
    """GAS on a backbone with its training rule."""
    solver = GAS(Setting(backbone.schedule, 3, backbone.output), **options)
    task = FitTask(
        sample=lambda tableau, x, condition: sample(backbone, tableau, x, condition),
        distance=lambda student, wanted: (student - wanted).square().flatten(1).mean(1),
        lr=5e-3,
        clip=1.0,
        rng=torch.Generator().manual_seed(0),
        iterations=20,
        state_shape=backbone.state_shape,
    )
    rule = solver.rule(task)
    assert isinstance(rule, Adversarial)
    return solver, rule


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[EDM, Batch]:
    return pixels(tmp_path_factory.mktemp("edm"))


def test_gas_learns_against_a_published_discriminator(
    problem: tuple[EDM, Batch], tmp_path: Path
) -> None:
    """The same batch 20 times; the record names the file."""
    path = fixture_file("r3gan-tiny-cifar10.pkl", tmp_path)
    solver, rule = adversary(problem[0], discriminator=str(path))
    before = load_file(path).state_dict()
    losses = [float(rule.step(problem[1], 1.0)["loss"]) for _ in range(20)]
    assert max(losses[-5:]) < 0.9 * losses[0], losses
    after = rule.discriminator.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved == {key for key, _ in rule.discriminator.named_parameters()}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert rule.facts() == {"discriminator_file_sha256": sha256}
    assert "published discriminator" in solver.flags[0]


@pytest.mark.parametrize("precision", ["float32", "stored"])
def test_gas_continues_with_the_same_bits(
    precision: str, problem: tuple[EDM, Batch], tmp_path: Path
) -> None:
    path = fixture_file("r3gan-tiny-cifar10.pkl", tmp_path)
    options = {"discriminator": str(path), "disc_precision": precision}
    made = [adversary(problem[0], **options) for _ in range(3)]
    (whole, rule), (first, early), (second, late) = made
    for _ in range(3):
        rule.step(problem[1], 1.0)
    for _ in range(2):
        early.step(problem[1], 1.0)
    second.load_state_dict(first.state_dict())
    late.load_state({key: value.clone() for key, value in early.state().items()})
    late.task.rng.set_state(early.task.rng.get_state())
    late.step(problem[1], 1.0)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    for key, value in rule.state().items():
        assert torch.equal(value, late.state()[key])
    assert late.discriminator.dtypes == rule.discriminator.dtypes
    assert (rule.discriminator.dtypes is None) == (precision == "float32")


def test_gas_refuses_files_that_do_not_fit_or_are_not_there(
    problem: tuple[EDM, Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = fixture_file("r3gan-tiny-ffhq64.pkl", tmp_path)
    for name, why in (
        (str(large), "3 x 64 x 64, the backbone has 3 x 32 x 32"),
        (str(tmp_path / "no.pkl"), r"no\.pkl is missing"),
        ("latent-3", "3 x 64 x 64, the backbone has 3 x 32 x 32"),
    ):
        with pytest.raises(SolverBenchError, match=why):
            adversary(problem[0], discriminator=name)
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    with pytest.raises(MissingWeightsError, match="weights fetch r3gan-cifar10"):
        adversary(problem[0], discriminator="r3gan-cifar10")
    with pytest.raises(ValueError, match=r"allowed: auto, .*r3gan-cifar10, .*a path"):
        adversary(problem[0], discriminator="r3gan-cifar")
    with pytest.raises(ValueError, match="disc_precision stored"):
        adversary(problem[0], disc_precision="stored")
    place = weights.path("r3gan-cifar10")
    place.parent.mkdir(parents=True)
    fixture_file("r3gan-tiny-cifar10.pkl", tmp_path).rename(place)
    _, rule = adversary(problem[0], discriminator="r3gan-cifar10")
    assert "discriminator_file_sha256" in rule.facts()


def test_discriminators_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    with pytest.raises(MissingWeightsError, match="r3gan-ffhq-64x64"):
        sb.load_discriminator("r3gan-ffhq-64x64")
    for name, given, why in (
        ("r3gan", {}, "needs weights=PATH"),
        ("latent-3", {"weights": tmp_path / "d.pkl"}, "weights are for discriminator r3gan"),
        ("latent-5", {}, "did you mean 'latent-"),
        ("r3gan", {"weights": tmp_path / "d.pkl"}, "is missing"),
        ("r3gan", {"weights": tmp_path / "d.safetensors"}, "is missing"),
        ("r3gan", {"weights": "d.pkl", "precision": "half"}, "allowed: float32, stored"),
    ):
        with pytest.raises(SolverBenchError, match=why):
            sb.load_discriminator(name, **given)  # type: ignore[arg-type]

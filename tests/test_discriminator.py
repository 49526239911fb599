"""The discriminator against the reference implementation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench import load_discriminator, tensorfile
from solverbench.discriminator import (
    FORMAT,
    PRESETS,
    R3GANDiscriminator,
    discriminator_loss,
    discriminator_step,
    discriminator_terms,
    generator_loss,
    load,
    of_state,
    preset,
    save,
)
from solverbench.errors import SolverBenchError
from tests.problems import gap, golden

CASES = {
    "plain": ((1, 1), 3, 1),
    "four_channel": ((1, 1), 4, 1),
    "embedding_dropped": ((1, 2), 3, 6),
}
GAMMA = 0.2


def case(name: str) -> tuple[R3GANDiscriminator, dict[str, Tensor]]:
    data = {k.removeprefix(f"{name}__"): v for k, v in golden("r3gan_discriminator").items()}
    blocks, channels, outputs = CASES[name]
    made = R3GANDiscriminator((6, 8), (2, 2), blocks, channels, outputs).double()
    made.load_state_dict(part(data, "state__"))
    return made, data


def part(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", CASES)
def test_scores_losses_and_penalties_meet_the_reference(name: str) -> None:
    """1e-9 of the largest entry, in float64."""
    made, data = case(name)
    assert gap(made(data["real"]), data["logits_real"]) < 1e-9
    assert gap(made(data["fake"]), data["logits_fake"]) < 1e-9
    terms = discriminator_terms(made, data["real"], data["fake"])
    assert gap(terms["scores_fake"], data["d_relativistic_logits"]) < 1e-9
    assert gap(terms["loss_adv"], data["d_adv"]) < 1e-9
    assert gap(terms["r1"], data["r1"]) < 1e-9
    assert gap(terms["r2"], data["r2"]) < 1e-9
    loss = terms["loss_adv"] + GAMMA / 2 * (terms["r1"] + terms["r2"])
    assert gap(loss, data["d_loss"]) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_both_players_meet_the_reference(name: str) -> None:
    """1e-8 of the largest entry: gradients go through second derivatives."""
    made, data = case(name)
    still = torch.optim.SGD(made.parameters(), lr=0.0)
    discriminator_step(made, still, (data["real"], data["fake"]), GAMMA)
    wanted = part(data, "grad__")
    parameters = dict(made.named_parameters())
    assert parameters.keys() == wanted.keys()
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        assert gap(parameter.grad, wanted[key]) < 1e-8
    fake = data["fake"].clone().requires_grad_(True)
    loss = generator_loss(made(data["real"]), made(fake))
    loss.mean().backward()
    assert gap(loss, data["g_loss"]) < 1e-9
    assert fake.grad is not None
    assert gap(fake.grad, data["g_grad_fake"]) < 1e-8


def test_traditional_losses_score_each_sample_alone() -> None:
    real, fake = torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.25]).double()
    wanted = -torch.sigmoid(real).log() - torch.sigmoid(-fake).log()
    assert gap(discriminator_loss(real, fake, "traditional"), wanted) < 1e-12
    assert gap(generator_loss(real, fake, "traditional"), -torch.sigmoid(fake).log()) < 1e-12


@pytest.mark.parametrize(
    ("name", "channels", "number"),
    [("r3gan-32", 3, 20_683_776), ("r3gan-64", 3, 22_381_440), ("r3gan-64", 4, 22_381_824)],
)
def test_published_sizes_have_the_published_number_of_parameters(
    name: str, channels: int, number: int
) -> None:
    with torch.device("meta"):
        made = R3GANDiscriminator(*PRESETS[name], num_channels=channels)
    assert sum(p.numel() for p in made.parameters()) == number


@pytest.mark.parametrize("name", ["small-8", "small-16"])
def test_fresh_discriminator_is_linear_and_follows_its_generator(name: str) -> None:
    """Third convolutions start at zero, so blocks do nothing; float32 rounding through it."""
    made = preset(name, 1, torch.Generator().manual_seed(0))
    again = preset(name, 1, torch.Generator().manual_seed(0))
    for key, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    x = torch.randn(4, 1, made.resolution, made.resolution)
    assert torch.allclose(made(2 * x), 2 * made(x), rtol=1e-4, atol=1e-4)
    weight = made.MainLayers[0].Layers[0].LinearLayer2.Layer.weight
    gain = (2 / 1.04) ** 0.5 * sum(PRESETS[name].blocks) ** -0.25
    wanted = gain / (9 * weight.shape[1]) ** 0.5
    # the standard deviation of thousands of normal numbers is known to a few per cent
    assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(("name", "channels"), [("latent-3", 3), ("latent-4", 4)])
def test_latent_discriminators_start_as_published(name: str, channels: int) -> None:
    """Weights N(0, gain^2 / fan_in), third convolutions and biases zero, all in float32."""
    made = load_discriminator(name, seed=3)
    assert (made.sizes, made.resolution) == (PRESETS["r3gan-64"], 64)
    assert made.get_parameter("ExtractionLayer.Layer.weight").shape == (384, channels, 1, 1)
    gain = (2 / (1 + 0.2**2)) ** 0.5 * 10**-0.25  # ten residual blocks
    for key, value in made.named_parameters():
        assert value.dtype == torch.float32
        scaled = value.detach() * value[0].numel() ** 0.5  # by the square root of the fan-in
        zero = "Bias" in key or "LinearLayer3" in key
        inner = "LinearLayer1" in key or "LinearLayer2" in key
        wanted = 0.0 if zero else gain if inner else 1.0
        # four standard errors of a standard deviation and of a mean of that many normal numbers
        error = 4 * wanted / value.numel() ** 0.5
        assert float(scaled.std()) == pytest.approx(wanted, abs=error), key
        assert abs(float(scaled.mean())) <= error, key
    again, other = (load_discriminator(name, seed=seed) for seed in (3, 4))
    key = "ExtractionLayer.Layer.weight"
    assert torch.equal(again.get_parameter(key), made.get_parameter(key))
    assert not torch.equal(other.get_parameter(key), made.get_parameter(key))
    with pytest.raises(ValueError, match=f"{name} is for {channels} channels"):
        preset(name, 5, torch.Generator())


def test_logits_are_differentiable_twice_in_every_weight() -> None:
    made = preset("small-8", 3, torch.Generator().manual_seed(0))
    for value in made.parameters():
        value.data += 0.1  # third convolutions start at zero and let nothing through
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    scores = made.logits(x)
    assert (scores.shape, scores.dtype) == ((2,), torch.float32)
    (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    slope.square().sum().backward()  # type: ignore[no-untyped-call]
    trained = made.trainable_parameters()
    assert len(trained) == len(list(made.parameters()))
    reached = [p.grad is not None and bool(p.grad.any()) for p in trained if p.ndim > 1]
    assert all(reached)


def test_sizes_are_read_from_the_tensors() -> None:
    made, _ = case("embedding_dropped")
    found = of_state(made.state_dict())
    assert (found.sizes, found.num_channels) == (made.sizes, 3)
    x = torch.randn(2, 3, 8, 8).double()
    assert torch.equal(found(x), made(x))


def test_weights_survive_a_file_in_half_precision(tmp_path: Path) -> None:
    """Half precision keeps 11 bits of each weight."""
    made = preset("small-8", 1, torch.Generator().manual_seed(0))
    save(tmp_path / "d.safetensors", made, {"steps": 3})
    found = load(tmp_path / "d.safetensors")
    for key, value in made.state_dict().items():
        assert torch.allclose(found.state_dict()[key], value, rtol=2**-11, atol=1e-7)


def test_foreign_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    tensorfile.write(path, "solverbench-discriminator-1", {"a": torch.zeros(2)}, {})
    with pytest.raises(SolverBenchError, match="not those of an R3GAN discriminator"):
        load(path)


def test_types_of_stages_go_with_a_file(tmp_path: Path) -> None:
    made, path = preset("small-8", 1, torch.Generator().manual_seed(0)), tmp_path / "d.safetensors"
    made.dtypes = (torch.bfloat16, torch.float32)
    save(path, made, {}, torch.float32)
    assert load(path).dtypes is None
    found = load(path, "stored")
    assert found.dtypes == made.dtypes
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(x), made(x))
    assert not torch.equal(load(path)(x), made(x))
    tensors, facts = tensorfile.read(path, FORMAT)
    for types in (["float32"], ["load", "float32"], [[], {}], {"float32": 1}, "float32", 3, None):
        tensorfile.write(path, FORMAT, tensors, facts | {"stage_dtypes": types})
        for precision in ("stored", "float32"):
            with pytest.raises(SolverBenchError, match="no types"):
                load(path, precision)


def test_files_with_too_many_stages_are_refused_at_once(tmp_path: Path) -> None:
    tensors = {f"MainLayers.{i}.Layers.0.x": torch.zeros(1) for i in range(3000)}
    with pytest.raises(SolverBenchError, match="not those of an R3GAN") as caught:
        of_state(tensors)
    assert "too many stages" in str(caught.value.__cause__)


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="allowed: small-8, small-16, r3gan-32, r3gan-64"):
        preset("large", 3, torch.Generator())


@pytest.mark.parametrize("fused", [False, True])
def test_step_that_is_not_finite_changes_nothing_and_later_steps_do(fused: bool) -> None:
    """Fused is what a CUDA device has; it runs on the CPU too."""
    made, data = case("plain")
    adam = torch.optim.Adam(made.parameters(), fused=fused)
    pair = data["real"], data["fake"]
    discriminator_step(made, adam, pair, GAMMA)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    moments = [{k: v.clone() for k, v in state.items()} for state in adam.state.values()]
    discriminator_step(made, adam, (pair[0] * torch.nan, pair[1]), GAMMA)
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key])
    for state, kept in zip(adam.state.values(), moments, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in state.items())
    discriminator_step(made, adam, pair, GAMMA)
    assert any(not torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_a_fused_optimiser_takes_the_steps_of_the_plain_one() -> None:
    found = []
    for fused in (False, True):
        made, data = case("plain")
        adam = torch.optim.Adam(made.parameters(), fused=fused)
        for _ in range(3):
            discriminator_step(made, adam, (data["real"], data["fake"]), GAMMA)
        found.append(made.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-9, atol=1e-12)  # order of sums

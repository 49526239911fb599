"""The discriminator against the reference implementation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.discriminator import (
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


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="allowed: small-8, small-16, r3gan-32, r3gan-64"):
        preset("large", 3, torch.Generator())


def test_step_that_is_not_finite_changes_nothing() -> None:
    made, data = case("plain")
    before = {key: value.clone() for key, value in made.state_dict().items()}
    adam = torch.optim.Adam(made.parameters())
    discriminator_step(made, adam, (data["real"] * torch.nan, data["fake"]), GAMMA)
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key])

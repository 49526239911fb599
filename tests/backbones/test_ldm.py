"""Latent diffusion models against the outputs of the original code."""

from pathlib import Path
from typing import Any

import pytest
import torch

from solverbench.backbones.ldm_files import load_ldm
from solverbench.benchmark.conformance import check_backbone
from solverbench.benchmark.distances import L1
from solverbench.benchmark.load import load_solver
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.solvers import LearnableSolver, sample
from tests.backbones.emit import goldens
from tests.backbones.ldm_cases import (
    MODELS,
    Golden,
    close,
    condition,
    config_of,
    gap,
    model,
    unpacked,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints, unpacked once."""
    return unpacked(tmp_path_factory.mktemp("ldm"))


@pytest.mark.parametrize("name", MODELS)
def test_noise_and_gradients_meet_the_original(files: dict[str, Path], name: str) -> None:
    golden = goldens(name)
    made, given = model(files, name), condition(golden)
    made.guidance = 1.0
    with torch.no_grad():
        close(made.raw(golden["x"], (golden["t_int"] + 1) / 1000, given), golden["eps_t_int"])
    x, t = (golden[key].clone().requires_grad_() for key in ("x", "t_cont"))
    eps = made.raw(x, t, given)
    close(eps, golden["eps_t_frac"])
    (eps * golden["cotangent"]).sum().backward()  # type: ignore[no-untyped-call]
    assert gap(x.grad, golden["grad_x"]) < 1e-4  # float32, as the fixtures recommend
    assert t.grad is not None
    assert gap(t.grad / 1000, golden["grad_t_frac"]) < 1e-4  # likewise; 1000 steps a unit of time


@torch.no_grad()
@pytest.mark.parametrize("calls", ["batched", "sequential"])
def test_guidance_meets_the_original(files: dict[str, Path], calls: str) -> None:
    golden = goldens(MODELS[1])
    made = model(files, MODELS[1], guidance_calls=calls)
    assert made.guidance == float(golden["guidance_scale"])
    given = condition(golden)
    assert given is not None
    x, t = golden["x"], golden["t_cont"]
    close(made.raw(x, t, given), golden["eps_cfg_t_frac"])
    close(made.raw(x, t, None), golden["eps_null_t_frac"])
    close(made.context(given.labels), golden["cond_embed"])
    null = made.null_context(5)
    assert null is not None
    close(null, golden["null_embed"])
    assert int(golden["null_class"]) == made.num_classes == 10


def test_classes_follow_the_seed_and_are_never_the_null_class(files: dict[str, Path]) -> None:
    given = model(files, MODELS[1]).condition([0, 9, 10, 50_013])
    assert given is not None
    assert given.labels.tolist() == [0, 9, 0, 3]
    assert model(files, MODELS[0]).condition([0, 1]) is None


@torch.no_grad()
def test_averaged_weights_are_taken_and_raw_ones_can_be(files: dict[str, Path]) -> None:
    golden, (file, config) = goldens(MODELS[0]), (files[MODELS[0]], config_of(MODELS[0]))
    for ema, kind, key in ((True, "ema", "eps_t_int"), (False, "raw", "eps_raw_t_int")):
        loaded = load_ldm(file, config, ema)
        assert loaded.facts.weights == kind
        close(loaded.unet(golden["x"], golden["t_int"]).sample, golden[key])
    assert model(files, MODELS[1]).facts.weights == "raw"  # as the published one has no average
    assert model(files, MODELS[1]).facts.dtype == "float16"


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_first_stage_meets_the_original(files: dict[str, Path], name: str) -> None:
    golden, made = goldens(name), model(files, name, decode_batch=1)
    assert made.scale == float(golden["scale_factor"])
    close(made.decode(golden["z"]), golden["image"])
    raw: Any = made.decoder
    close(raw.decode(golden["z"], force_not_quantize=True).sample, golden["image_noquant"])
    codes, index = made.quantise(golden["z"] / made.scale)
    assert torch.equal(index, golden["code_index"])
    close(codes, golden["z_quantized"])
    close(made.encode(golden["enc_image"]), golden["enc_latent"])


def test_gradients_pass_the_codes_as_if_there_were_none(files: dict[str, Path]) -> None:
    golden, made = goldens(MODELS[0]), model(files, MODELS[0])
    z = golden["z"].clone().requires_grad_()
    made.decode(z).square().mean().backward()
    codes = golden["z_quantized"].clone().requires_grad_()
    raw: Any = made.decoder
    raw.decode(codes, force_not_quantize=True).sample.square().mean().backward()
    assert gap(z.grad, codes.grad) < 1e-5  # rounding: the slope of the codes in z is 1


@pytest.mark.parametrize("name", MODELS)
def test_schedules_are_those_of_the_buffers(files: dict[str, Path], name: str) -> None:
    golden, made = goldens(name), model(files, name)
    knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alphas = made.schedule.alpha(knots).square()
    assert gap(golden["alphas_cumprod"], alphas) < 1e-6  # the buffers are float32
    facts = made.schedule.facts()
    assert (facts["beta_first"], facts["beta_last"]) == (0.0015, 0.0195)
    assert made.t_floor == made.schedule.t_min == 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_adapters_conform(files: dict[str, Path], name: str) -> None:
    paths = {"weights": str(files[name]), "config": str(config_of(name))}
    assert [c for c in check_backbone("ldm", **paths) if not c.passed] == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        (MODELS[0], {}, 1),
        (MODELS[1], {}, 2),
        (MODELS[1], {"guidance": 1.0}, 1),
        (MODELS[1], {"guidance_calls": "sequential"}, 2),
    ],
)
def test_a_tableau_samples_and_guided_rows_count_twice(
    files: dict[str, Path], name: str, options: Golden, passes: int
) -> None:
    made = model(files, name, **options)
    tableau = load_solver("unipc-3", made, 5).tableau()
    with made.counting() as count:
        latents = sample(made, tableau, made.noise([7, 8]), made.condition([7, 8]))
    assert (count.calls, count.samples, count.rows) == (5, 10, 10 * passes)
    images = made.decode(latents)
    assert images.shape == (2, 3, 32, 32)
    assert bool(images.isfinite().all())


@torch.no_grad()
def test_ways_to_run_change_rounding_only(files: dict[str, Path]) -> None:
    golden = goldens(MODELS[1])
    x, t, given = golden["x"], golden["t_cont"], condition(golden)
    wanted = model(files, MODELS[1]).raw(x, t, given)
    for options in (
        {"attention": "eager"},
        {"channels_last": True},
        {"gradient_checkpointing": True},
        {"guidance_calls": "sequential"},
    ):
        assert gap(model(files, MODELS[1], **options).raw(x, t, given), wanted) < 1e-5, options
    eager = model(files, MODELS[0], attention="eager")
    close(eager.raw(x, t, None), model(files, MODELS[0]).raw(x, t, None))
    rough = model(files, MODELS[1], dtype="bfloat16").raw(x, t, given)
    assert 1e-4 < gap(rough, wanted) < 0.1  # eight bits in the network, float32 around it
    assert rough.dtype == torch.float32


def test_gs_learns_on_a_guided_model(files: dict[str, Path], tmp_path: Path) -> None:
    """In the harness's own loop, with the distance of latents: nothing is decoded."""
    made = model(files, MODELS[1])
    seeds = range(4)
    noise, given = made.noise(seeds), made.condition(seeds)
    with torch.no_grad():
        target = sample(made, load_solver("unipc-3", made, 10).tableau(), noise, given)
    solver = load_solver("gs", made, 4)
    assert isinstance(solver, LearnableSolver)
    pairs = Samples(seeds, noise, target, given, 0.0, 10, 20.0, 0)
    spec = FitSpec(iterations=20, batch=4, train_size=4, validation_size=4, lr=5e-3)

    def no_decoding(*args: object) -> None:
        raise AssertionError("latents are compared")

    made.decoder.get_submodule("decoder").register_forward_pre_hook(no_decoding)
    fit = Fit(solver, Lesson(spec, 0, made, L1(made), pairs, pairs))
    fit.run(tmp_path)
    assert fit.network_rows > 0
    assert fit.last < 0.95 * fit.first

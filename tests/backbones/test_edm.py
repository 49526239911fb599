"""EDM networks and adapter against the outputs of the original code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import solverbench as sb
from solverbench import tensorfile
from solverbench.backbones import edm_files
from solverbench.backbones.edm import EDM
from solverbench.backbones.edm_files import load_network, save_network
from solverbench.backbones.edm_preconditioning import Precond, build
from solverbench.benchmark.conformance import check_backbone
from solverbench.errors import SolverBenchError
from solverbench.inspecting import weights_facts
from solverbench.schedule import VE, VPLinear, vp_wrapped
from solverbench.solvers import Batch, FitTask, Setting, sample
from solverbench.solvers.ddim import DDIM
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.gs import GS
from tests.backbones.emit import fixture_file, goldens

NETWORKS = [
    "baseline-tiny-cond-iddpm",
    "baseline-tiny-uncond-ve",
    "baseline-tiny-uncond-vp",
    "edm-tiny-cond-adm",
    "edm-tiny-cond-ncsnpp-torch2",
    "edm-tiny-uncond-ddpmpp",
]
PUBLISHED = {
    "cifar10-uncond-vp": (55_733_891, 425, 32, {"channel_mult": [2, 2, 2], "augment_dim": 9}),
    "cifar10-cond-vp": (
        *(55_735_299, 427, 32),
        {"channel_mult": [2, 2, 2], "augment_dim": 9, "label_dim": 10},
    ),
    "ffhq-vp": (61_805_571, 553, 64, {"channel_mult": [1, 2, 2, 2], "augment_dim": 9}),
    "ffhq-ve": (62_761_091, 563, 64, {"channel_mult": [1, 2, 2, 2], "augment_dim": 9, "ve": 1}),
    "imagenet-adm": (295_899_267, 553, 64, {"label_dim": 1000, "model_type": "DhariwalUNet"}),
}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def close(value: Tensor, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-5, check_dtype=False)


def gap(value: Tensor | None, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted entry."""
    assert value is not None
    return float((value.detach() - wanted).abs().max() / wanted.abs().max())


def fixture(name: str, folder: Path, ending: str) -> Precond:
    """A fixture's network, read from the pickle or by way of safetensors."""
    network, facts = load_network(fixture_file(f"{name}.pkl", folder))
    if ending == "pkl":
        return network
    save_network(folder / "made.safetensors", network, facts)
    again, same = load_network(folder / "made.safetensors")
    assert same == facts
    return again


@pytest.mark.parametrize("ending", ["pkl", "safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_gradients_meet_the_original(name: str, ending: str, tmp_path: Path) -> None:
    network, golden = fixture(name, tmp_path, ending), goldens(name)
    inner: dict[str, Tensor] = {}

    def seen(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        inner.update(c_noise=args[1], net_out=output)

    handle = network.model.register_forward_hook(seen)
    x, sigma = (golden[key].clone().requires_grad_() for key in ("x", "sigma"))
    denoised = network(x, sigma, golden.get("class_labels"))
    handle.remove()
    unit = sigma.detach().clamp(min=1.0)[:, None, None, None]
    close(denoised / unit, golden["denoised"] / unit)  # a difference of terms as large as sigma
    close(inner["c_noise"], golden["c_noise"])
    close(inner["net_out"], golden["net_out"])
    (denoised * golden["cotangent"]).sum().backward()
    assert gap(x.grad, golden["grad_x"]) < 1e-4  # float32, as the fixtures recommend
    if "grad_sigma" in golden:
        assert gap(sigma.grad, golden["grad_sigma"]) < 1e-3  # likewise
    else:
        assert torch.equal(network.round_sigma(golden["sigma"]), golden["round_sigma"])
    assert network.sigma_min == float(golden["sigma_min"])
    assert network.sigma_max == float(golden["sigma_max"])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_taken_or_left_away(name: str, tmp_path: Path) -> None:
    network, golden = fixture(name, tmp_path, "pkl"), goldens(name)
    x, sigma, labels = golden["x"], golden["sigma"], golden.get("class_labels")
    close(network(x, golden["sigma_scalar"], labels), golden["denoised_scalar"])
    if labels is not None:
        close(network(x, sigma), golden["denoised_nolabel"])
    if "augment_labels" in golden:
        augmented = network(x, sigma, labels, golden["augment_labels"])
        close(augmented, golden["denoised_augment"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_numbers_of_weights(name: str) -> None:
    numel, num, size, other = PUBLISHED[name]
    other = {"model_type": "SongUNet"} | other | (NCSNPP if "ve" in other else {})
    other.pop("ve", None)
    made = build("EDMPrecond", other | {"img_resolution": size, "img_channels": 3})
    assert len(made.state_dict()) == num
    assert sum(p.numel() for p in made.parameters()) == numel


@pytest.mark.parametrize("kind", ["positional", "fourier"])
@pytest.mark.parametrize(
    "paths", [("skip", "skip"), ("residual", "skip"), ("skip", "standard"), ("standard", "skip")]
)
def test_every_path_through_the_network_runs(kind: str, paths: tuple[str, str]) -> None:
    sizes = {"img_resolution": 8, "img_channels": 3, "model_channels": 8, "num_blocks": 1}
    ways = {"encoder_type": paths[0], "decoder_type": paths[1], "embedding_type": kind}
    more = {"resample_filter": [1, 3, 3, 1], "channel_mult": [1, 2, 1], "model_type": "SongUNet"}
    network = build("VEPrecond", sizes | ways | more).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.normal_()
    assert network(torch.randn(2, 3, 8, 8), torch.tensor(1.0)).shape == (2, 3, 8, 8)


@torch.no_grad()
def test_the_vp_frame_meets_the_original(tmp_path: Path) -> None:
    golden = goldens("edm-tiny-uncond-ddpmpp.vp")
    made = EDM(weights=str(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path)))
    t = golden["t"]
    assert torch.allclose(made.schedule.lam(t), VPLinear().lam(t), rtol=1e-11)  # none clipped
    for i, t in enumerate(golden["t"]):
        p = made.predict(golden["x_vp"][i : i + 1].double(), t)
        close(p.x0, golden["denoised"][i : i + 1])
        # a difference of 2e-7 in x0 counts alpha / sigma times in eps, 315 at the last t
        close(p.eps * min(1.0, float(golden["sigma_edm"][i]) * 10), _scaled(golden, i))
    lam = golden["lam_query"]
    assert torch.allclose(made.schedule.inverse_lam(lam), golden["t_of_lam"], rtol=1e-11)


def _scaled(golden: dict[str, Any], i: int) -> Tensor:
    wanted: Tensor = golden["eps"][i : i + 1] * min(1.0, float(golden["sigma_edm"][i]) * 10)
    return wanted


@pytest.mark.parametrize("frame", ["vp", "ve"])
@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_conform(name: str, frame: str, tmp_path: Path) -> None:
    weights = str(fixture_file(f"{name}.pkl", tmp_path))
    failed = [c for c in check_backbone("edm", weights=weights, frame=frame) if not c.passed]
    assert failed == []


def test_both_frames_and_types_sample_alike(tmp_path: Path) -> None:
    """DDIM on the same noise levels, VE against VP; float32 networks in float64 states."""
    weights = str(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path))
    ends = []
    for frame in ("vp", "ve"):
        made = EDM(weights=weights, frame=frame)  # type: ignore[arg-type]
        levels = torch.tensor([60.0, 10.0, 2.0, 0.5, 0.1], dtype=torch.float64)
        t = made.schedule.inverse_lam(-levels.log())
        x = (made.schedule.alpha(t[0]) * 60.0) * made.noise([0, 1]).double()
        for i in range(4):
            grid = made.schedule.grid(t[i : i + 2])
            p = made.predict(x, grid.t[0])
            x = grid.alpha[1] * p.x0 + grid.sigma[1] * p.eps
        ends.append(x / made.schedule.alpha(t[-1]))
    assert gap(ends[0], ends[1]) < 1e-5  # rounding of float32 networks


def test_gradients_in_time_hold_a_rounded_level_still(tmp_path: Path) -> None:
    """iDDPM tells its network whole levels: what remains is the slope of the factors around it.

    Compared with central differences of a step in which the level told stays the same.
    """
    made = EDM(weights=str(fixture_file("baseline-tiny-cond-iddpm.pkl", tmp_path)), frame="ve")
    network: Any = made.edm
    level = float(network.round_sigma(torch.tensor([1.5])))
    x, told = made.noise([0]).double(), []
    handle = network.model.register_forward_hook(lambda module, args, out: told.append(args[1]))
    t = torch.tensor(level, dtype=torch.float64, requires_grad=True)
    made.evaluate(x, t, made.condition([0])).sum().backward()  # type: ignore[no-untyped-call]
    step = 1e-3
    with torch.no_grad():
        below, above = (
            made.evaluate(x, t + side * step, made.condition([0])).sum() for side in (-1, 1)
        )
    handle.remove()
    assert len({float(noise) for noise in told}) == 1
    # float32: values of 100 with 1e-6 relative error over a step of 2e-3, against slopes of 100
    assert float(t.grad) == pytest.approx(float(above - below) / (2 * step), rel=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_tableau_samples_from_every_network(name: str, tmp_path: Path) -> None:
    made = EDM(weights=str(fixture_file(f"{name}.pkl", tmp_path)))
    tableau = DDIM(Setting(made.schedule, 5, made.output)).tableau()
    with made.counting() as count:
        images = sample(made, tableau, made.noise([7, 8]), made.condition([7, 8]))
    assert bool(images.isfinite().all())
    assert (count.calls, count.samples) == (5, 10)


def test_gs_learns_on_a_network(tmp_path: Path) -> None:
    made = EDM(weights=str(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path)))
    teacher = DPMpp3M(Setting(made.schedule, 12, made.output)).tableau()
    noise = made.noise(range(4))
    with torch.no_grad():
        target = sample(made, teacher, noise)
    solver = GS(Setting(made.schedule, 4, made.output))
    task = FitTask(
        sample=lambda tableau, x, condition: sample(made, tableau, x, condition),
        distance=lambda student, wanted: (student - wanted).square().flatten(1).mean(1),
        lr=5e-3,
        clip=1.0,
        rng=torch.Generator().manual_seed(0),
    )
    rule, batch = solver.rule(task), Batch(noise, target, None, torch.arange(4))
    losses = [float(rule.step(batch, 1.0)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0], losses  # the same batch 20 times


@torch.no_grad()
def test_denoise_takes_classes_as_numbers_or_rows(tmp_path: Path) -> None:
    golden = goldens("edm-tiny-cond-ncsnpp-torch2")
    made = EDM(weights=str(fixture_file("edm-tiny-cond-ncsnpp-torch2.pkl", tmp_path)))
    x, sigma = golden["x"], golden["sigma"]
    close(made.denoise(x, sigma, golden["class_idx"]), golden["denoised"])
    close(made.denoise(x, sigma, golden["class_labels"]), golden["denoised"])
    close(made.denoise(x, sigma), golden["denoised_nolabel"])
    condition = made.condition([0, 3, 4, 50_001])
    assert condition is not None
    assert condition.labels.tolist() == [0, 3, 0, 1]
    with pytest.raises(ValueError, match="4 columns"):
        made.denoise(x, sigma, golden["class_labels"][:, :3])


def test_schedules_keep_to_what_the_network_knows(tmp_path: Path) -> None:
    weights = str(fixture_file("baseline-tiny-uncond-ve.pkl", tmp_path))
    made = EDM(weights=weights)
    assert made.schedule.facts() == vp_wrapped(1e-3, 0.02, 100.0).facts()
    assert float(made.schedule.shat(1e-3)) == pytest.approx(0.02)
    assert float(made.schedule.shat(1.0)) == pytest.approx(100.0)
    assert made.t_floor == pytest.approx(1e-3)
    ve = EDM(weights=weights, frame="ve")
    assert isinstance(ve.schedule, VE)
    assert (ve.schedule.t_min, ve.schedule.t_max, ve.t_floor) == (0.02, 80.0, 0.02)
    for frame, t_min in (("vp", 0.0), ("vp", 1.0), ("ve", 0.01), ("ve", 90.0), ("no", None)):
        with pytest.raises(ValueError, match=r"allowed|between"):
            EDM(weights=weights, frame=frame, t_min=t_min)  # type: ignore[arg-type]


@torch.no_grad()
def test_memory_format_changes_rounding_only(tmp_path: Path) -> None:
    weights = str(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path))
    x = torch.randn(2, 3, 16, 16)
    pair = [EDM(weights=weights, channels_last=last).denoise(x, 1.0) for last in (False, True)]
    close(*pair)


def test_files_that_are_missing_or_foreign_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="needs weights"):
        EDM()
    with pytest.raises(SolverBenchError, match="is missing"):
        EDM(weights=str(tmp_path / "no.pkl"))
    with pytest.raises(SolverBenchError, match="is missing"):
        EDM(weights=str(tmp_path / "no.safetensors"))
    (tmp_path / "text.pkl").write_text("<html>")
    with pytest.raises(SolverBenchError, match=r"text\.pkl: .*no pickle"):
        EDM(weights=str(tmp_path / "text.pkl"))
    with pytest.raises(SolverBenchError, match="is a folder"):
        EDM(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": 3}, "no short text"),
        ({"kind": "Payload"}, "known are EDMPrecond"),
        ({"keywords": [1]}, "what its network was made from"),
        ({"keywords": {"a": {}}}, "no number, text"),
        ({"keywords": {"model_type": []}}, "model_type"),
        ({"sigma_min": "0"}, "no range"),
        ({"sigma_min": 1e300}, "no range"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "range of noise levels"),
        ({"sigma_max": float("nan")}, "no range"),
        ({"sigma_min": 1e6}, "none of the VP frame"),
        ({"dtype": "float64"}, "known are"),
        ({"file_sha256": 5}, "no short text"),
        ({"other": 1}, "not those of an EDM network"),
    ],
)
def test_facts_of_converted_files_are_checked_as_strictly(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    network, facts = load_network(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path))
    path, tensors = tmp_path / "d.safetensors", dict(network.state_dict())
    tensorfile.write(path, edm_files.FORMAT, tensors, facts._asdict() | change)
    with pytest.raises(SolverBenchError, match=why) as caught:
        sb.load_backbone("edm", weights=str(path))
    assert "\n" not in str(caught.value)
    if "sigma_min" not in change or change["sigma_min"] != 1e6:
        with pytest.raises(SolverBenchError, match=why):
            weights_facts(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network, facts = load_network(fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path))
    next(network.parameters()).data.fill_(float("nan"))
    save_network(tmp_path / "d.safetensors", network, facts)
    with pytest.raises(SolverBenchError, match="not finite"):
        load_network(tmp_path / "d.safetensors")

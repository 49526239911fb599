"""The Python face: what a reader of the documentation types."""

from pathlib import Path

import pytest
import torch

import solverbench as sb
from solverbench.backbones.base import Backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return sb.load_backbone("digits")


def test_every_public_name_is_there_and_nothing_else() -> None:
    assert sorted(sb.__all__) == dir(sb)
    for name in sb.__all__:
        assert getattr(sb, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sb.nothing  # noqa: B018


def test_a_solver_becomes_a_table_that_samples_and_survives_a_file(
    backbone: Backbone, tmp_path: Path
) -> None:
    tableau = sb.load_solver("dpmpp-3m", backbone, nfe=6).tableau()
    assert tableau.nfe == 6
    assert tableau.A.shape == (7, 7)
    assert tableau.meta["title"] == "DPM++ (3M)"
    noise = backbone.noise(seeds=range(8))
    assert noise.shape == (8, 1, 8, 8)
    condition = backbone.condition(range(8))
    states = sb.sample(backbone, tableau, noise, condition)
    images = backbone.decode(states)
    assert images.shape == (8, 1, 8, 8)
    assert float(images.abs().max()) < 2
    loaded = sb.Tableau.load(tableau.save(tmp_path / "dpmpp.safetensors"))
    assert loaded.meta == tableau.meta
    assert torch.equal(sb.sample(backbone, loaded, noise, condition), states)


def test_a_prediction_reads_as_data_or_noise_at_a_plain_time(backbone: Backbone) -> None:
    x, t = backbone.noise(seeds=range(8)), 0.5
    predicted = backbone.predict(x, t)
    assert predicted.x0.shape == predicted.eps.shape == x.shape
    schedule = backbone.schedule
    total = float(schedule.alpha(t)) * predicted.x0 + float(schedule.sigma(t)) * predicted.eps
    torch.testing.assert_close(total, x, rtol=1e-5, atol=1e-5)  # float32, a few roundings


def test_gradients_reach_a_learnable_solver_through_sampling(backbone: Backbone) -> None:
    solver = sb.load_solver("gs", backbone, nfe=3)
    sb.sample(backbone, solver.tableau(), backbone.noise(range(2))).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in solver.parameters())  # type: ignore[attr-defined]
    assert all(p.grad is None for p in backbone.network.parameters())


def spec(solver: str = "ddim", nfe: int = 4) -> sb.RunSpec:
    return sb.RunSpec(
        backbone=sb.Named(name="digits"),
        solver=sb.Named(name=solver),
        nfe=nfe,
        teacher=sb.TeacherSpec(solver=sb.Named(name="dpmpp-2m"), nfe=6),
        evaluation=sb.EvaluationSpec(num_images=40, batch=20),
    )


def test_a_cell_runs_in_one_call_and_its_record_is_found_again(tmp_path: Path) -> None:
    result = sb.run(spec(), tmp_path)
    assert isinstance(result, sb.Result)
    assert result.status == "ok"
    assert result.metrics["fd"] > 0
    assert sb.run(spec(), str(tmp_path)) == result


def test_a_spec_is_frozen_and_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec().nfe = 5  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        sb.EvaluationSpec(images=40)  # type: ignore[call-arg]
    assert spec().key() == spec().key() != spec(nfe=5).key()


@pytest.mark.parametrize(
    ("solver", "nfe", "options", "line"),
    [
        (
            "dpmpp2m",
            6,
            {},
            "unknown solver 'dpmpp2m'; did you mean 'dpmpp-2m'? All names: solverbench list",
        ),
        (
            "ddim",
            6,
            {"steps": 3},
            "solver ddim has no option 'steps'; it has: schedule, t_min, rho, lower_order_final, "
            "afs",
        ),
        (
            "heun",
            6,
            {},
            "heun needs an odd nfe (two calls per step, one for the last); got 6. Use 5 or 7.",
        ),
        (
            "dpm-solver-2",
            5,
            {},
            "dpm-solver-2 needs an even nfe (two calls per step); got 5. Use 4",
        ),
        ("ddim", 0, {}, "ddim: nfe is a whole number from 1 to 4096; got 0"),
        ("ddim", 6, {"schedule": "logsrn"}, "unknown schedule 'logsrn'; did you mean 'logsnr'?"),
        ("ddim", 6, {"t_min": 2.0}, "ddim: t_min is 2.0; it must lie between 0 and 1.0"),
        ("ddim", 6, {"schedule": [1.0, 0.5]}, "a schedule of 6 steps needs 7 decreasing times"),
    ],
)
def test_a_wrong_solver_is_one_line_that_says_what_to_do(
    backbone: Backbone, solver: str, nfe: int, options: dict[str, object], line: str
) -> None:
    with pytest.raises(sb.SolverBenchError) as caught:
        sb.load_solver(solver, backbone, nfe=nfe, **options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("digit", {}, "unknown backbone 'digit'; did you mean 'digits'?"),
        ("zzz", {}, "unknown backbone 'zzz'. All names: solverbench list backbones"),
        ("digits", {"size": 3}, "backbone digits has no option 'size'; it has: weights, guidance"),
        ("digits", {"guidance": 2.0}, "digits is unconditional; guidance must stay 1"),
        ("digits", {"weights": "/no/such/file"}, "/no/such/file"),
        ("gaussian", {"frame": "vp"}, "frame is 'vp'; allowed: ve, vp-linear"),
    ],
)
def test_a_wrong_backbone_is_one_line_that_says_what_to_do(
    name: str, options: dict[str, object], line: str
) -> None:
    with pytest.raises(sb.SolverBenchError) as caught:
        sb.load_backbone(name, **options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_frame_output_or_shape_is_refused(backbone: Backbone) -> None:
    noise = backbone.noise(range(2))
    ve, eps = (
        sb.load_backbone("gaussian", shape=(1, 8, 8), **kw)
        for kw in ({"frame": "ve"}, {"output": "eps"})
    )
    for other, what in ((ve, "frame"), (eps, "output")):
        foreign = sb.load_solver("ddim", other, nfe=4).tableau()
        with pytest.raises(sb.SolverBenchError, match=f"the tableau was made for {what}"):
            sb.sample(backbone, foreign, noise)
    own = sb.load_solver("ddim", backbone, nfe=4).tableau()
    with pytest.raises(sb.SolverBenchError, match="noise has shape"):
        sb.sample(backbone, own, noise[:, :, :4])


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    for content in (None, b"", b"not a table at all"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(sb.SolverBenchError, match=r"table\.safetensors"):
            sb.Tableau.load(path)

"""Files of latent diffusion models: what is read, what is kept, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverbench import tensorfile
from solverbench.backbones.ldm import LDM
from solverbench.backbones.ldm_files import (
    FORMAT,
    LoadedLDM,
    build,
    inspect_ldm,
    load_ldm,
    save_ldm,
)
from solverbench.backbones.ldm_layout import (
    CLASSES,
    RAW,
    STAGE,
    of_shapes,
    stage_keywords,
    stage_place,
    unet_keywords,
    unet_place,
)
from solverbench.benchmark.load import load_backbone
from solverbench.errors import SolverBenchError
from solverbench.sources import Source
from tests.backbones.emit import fixture_file, goldens
from tests.backbones.ldm_cases import (
    MODELS,
    Golden,
    close,
    config_of,
    edited,
    model,
    rewritten,
    tensors_of,
    unpacked,
)

SIDE = (3, 3, 64)  # channels in and out, latents of the published models


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints, unpacked once."""
    return unpacked(tmp_path_factory.mktemp("ldm"))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_conversion_keeps_every_bit(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    loaded = load_ldm(files[name], config_of(name))
    made = tmp_path / "made.safetensors"
    save_ldm(made, loaded)
    again = load_ldm(made)
    assert again.facts == loaded.facts == inspect_ldm(made)
    for one, other in zip(loaded[:3], again[:3], strict=True):
        if isinstance(one, nn.Module) and isinstance(other, nn.Module):
            ours, theirs = one.state_dict(), other.state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    golden = goldens(name)
    converted = LDM(weights=str(made))
    close(converted.decode(golden["z"]), golden["image"])
    assert converted.weights_sha256 == model(files, name).weights_sha256
    size = files[name].stat().st_size
    assert made.stat().st_size < (0.65 if loaded.facts.weights == "ema" else 1.0) * size


def test_a_converted_file_of_other_content_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    loaded, made = load_ldm(files[MODELS[1]], config_of(MODELS[1])), tmp_path / "m.safetensors"
    tensorfile.write(made, FORMAT, {"unet.x": torch.zeros(1)}, {"layout": {}})
    with pytest.raises(SolverBenchError, match="no solverbench-ldm-1 file"):
        load_ldm(made)
    no_classes = LoadedLDM(loaded.unet, loaded.first_stage, None, loaded.facts)
    save_ldm(made, no_classes)
    with pytest.raises(SolverBenchError, match="the class embedding lacks"):
        load_ldm(made)


@torch.no_grad()
def test_a_folder_of_diffusers_gives_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    loaded, folder = load_ldm(files[MODELS[0]], config_of(MODELS[0])), tmp_path / "folder"
    parts: list[tuple[str, Any]] = [("unet", loaded.unet), ("vqvae", loaded.first_stage)]
    for name, part in parts:
        part.save_pretrained(folder / name)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    facts = {"beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}
    scheduler.write_text(json.dumps(facts | {"beta_schedule": "scaled_linear"}))
    made, golden = LDM(weights=str(folder)), goldens(MODELS[0])
    assert torch.equal(
        made.raw(golden["x"], golden["t_cont"], None),
        model(files, MODELS[0]).raw(golden["x"], golden["t_cont"], None),
    )
    close(made.decode(golden["z"]), golden["image"])
    assert made.facts.num_parameters == loaded.facts.num_parameters
    scheduler.write_text(json.dumps(facts | {"beta_schedule": "linear"}))
    with pytest.raises(SolverBenchError, match="beta_schedule must be 'scaled_linear'"):
        LDM(weights=str(folder))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    scheduler.write_text(json.dumps(facts | {"beta_schedule": "scaled_linear"}))
    with pytest.raises(SolverBenchError, match=r"safetensors is missing"):
        LDM(weights=str(folder))
    shutil.rmtree(folder / "vqvae")
    with pytest.raises(SolverBenchError, match="no folders unet and vqvae"):
        LDM(weights=str(folder))


def test_facts_are_told_without_building(files: dict[str, Path]) -> None:
    for name, classes, parameters in ((MODELS[0], 0, 702_499), (MODELS[1], 10, 980_771)):
        facts, built = inspect_ldm(files[name]), load_ldm(files[name], config_of(name))
        assert (facts.num_classes, facts.num_parameters) == (classes, parameters)
        assert facts.num_parameters == sum(p.numel() for p in built.unet.parameters())
        assert facts.num_stage_parameters == sum(p.numel() for p in built.first_stage.parameters())
        assert facts.architecture == built.facts.architecture
        assert facts.layout.unet["attention_head_dim"] is None  # leaves no trace in a checkpoint


def test_what_is_not_used_is_not_read(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds raw weights, averaged ones and an optimiser; the first stage is small."""
    sizes: list[int] = []
    read_into = Source.read_into

    def counted(source: Source, start: int, target: memoryview) -> None:
        sizes.append(len(target))
        read_into(source, start, target)

    monkeypatch.setattr(Source, "read_into", counted)
    facts = inspect_ldm(files[MODELS[0]])
    assert sum(sizes) == 3 * 4000  # betas twice and alphas_cumprod, 1000 numbers each
    sizes.clear()
    load_ldm(files[MODELS[0]], config_of(MODELS[0]))
    whole = 4 * (facts.num_parameters + facts.num_stage_parameters)
    assert whole < sum(sizes) < 1.15 * whole  # common q, k, v are read three times


PUBLISHED = {  # numbers of parameters, and of tensors in a file, of backbones.md section 3.2
    "beds256": (([224, 448, 672, 896], 32, None), 274_056_163, 368),
    "cin256-v2": (([192, 384, 576, 960], 1, 512), 400_920_579, 688),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_known_by_their_shapes(name: str) -> None:
    (widths, heads, context), numel, num = PUBLISHED[name]
    unet = unet_keywords(SIDE, widths, [False, True, True, True], 2, heads, context)
    stage = stage_keywords(3, 3, 8192, [128, 256, 512], 2, 256)
    shapes: dict[str, tuple[int, ...]] = {}
    for module, prefix, place in (
        (build(unet), RAW, lambda key: unet_place(key, unet)),
        (build(stage), STAGE, lambda key: stage_place(key, stage)),
    ):
        for key, value in module.state_dict().items():
            where, part = place(key)
            rows = value.shape[0] * (1 if part is None else 3)
            shapes[prefix + where] = (rows, *value.shape[1:])
    if context:
        shapes[CLASSES] = (1001, context)
    assert sum(p.numel() for p in build(unet).parameters()) == numel
    assert sum(p.numel() for p in build(stage).parameters()) == 55_322_782
    assert sum(key.startswith(RAW) for key in shapes) == num
    assert sum(key.startswith(STAGE) for key in shapes) == 205
    layout = of_shapes(shapes, None)
    assert (layout.unet, layout.first_stage) == (unet, stage)
    assert (layout.num_rows, layout.width) == ((1001, 512) if context else (0, 0))


def test_a_kl_first_stage_decodes_and_encodes(files: dict[str, Path], tmp_path: Path) -> None:
    stage = build(stage_keywords(3, 3, None, [32, 32], 1, 32)).to_empty(device="cpu")
    rng = torch.Generator().manual_seed(0)
    for value in stage.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=rng) / max(1, value[0].numel()) ** 0.5)
    keywords = {"block_out_channels": [32, 32]}
    theirs = {
        STAGE + stage_place(key, keywords).key: value[:, :, None, None]
        if value.ndim == 2
        else value
        for key, value in stage.state_dict().items()
    }
    without = rewritten(files[MODELS[0]], tmp_path, **{STAGE: None})
    file = rewritten(without, tmp_path, **theirs, scale_factor=torch.tensor(0.5))
    edits = [("double_z: false", "double_z: true"), ("        n_embed: 64\n", "")]
    text = config_of(MODELS[0]).read_text().replace("VQModelInterface", "AutoencoderKL")
    for old, new in edits:
        text = text.replace(old, new)
    config = tmp_path / "kl.yaml"
    config.write_text(text)
    made, z = LDM(weights=str(file), config=str(config)), goldens(MODELS[0])["z"]
    ours: Any = stage
    with torch.no_grad():
        close(made.decode(z), ours.decode(z / 0.5).sample)
        images = torch.rand(2, 3, 32, 32, generator=rng)
        close(made.encode(images), 0.5 * ours.encode(images).latent_dist.mean)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("channel_mult:\n        - 1", "channel_mult:\n        - 2", "channel_mult: starts with 2"),
        ("ch_mult:\n          - 1", "ch_mult:\n          - 2", "ch_mult: starts with 2"),
        ("num_res_blocks: 1\n        ch", "num_res_blocks: 2\n        ch", "UNet lacks tensors"),
        ("num_res_blocks: 1\n          at", "num_res_blocks: 2\n          at", "stage lacks"),
        ("model_channels: 32", "model_channels: 64", "UNet has tensors of other sizes"),
        ("model_channels: 32", "model_channels: 33", "no UNet2DModel can be made so"),
        ("n_embed: 64", "n_embed: 65", "first stage has tensors of other sizes"),
        ("- 2\n        num_res", "- 1\n        num_res", "UNet (lacks|has) tensors"),
        ("num_head_channels: 16", "num_heads: 2", "heads are given by"),
        ("num_head_channels: 16", "num_head_channels: 16\n        dims: 3", "dims: Input should"),
        ("num_head_channels: 16", "num_head_channels: 16\n        odd: 3", "odd: Extra inputs"),
        ("linear_end: 0.0195", "linear_end: 0.012", "alphas_cumprod are not those of 1000"),
        ("timesteps: 1000", "timesteps: 500", "timesteps: Input should be 1000"),
        ("VQModelInterface", "IdentityFirstStage", "no VQModel or AutoencoderKL"),
        ("embed_dim: 3", "embed_dim: 4", "channels of the network"),
        ("in_channels: 3\n        out", "in_channels: 6\n        out", "channels of the network"),
        ("__is_unconditional__", "__is_first_stage__", "cond_stage_config"),
        ("model:", "modell:", "model: Field required"),
        ("model:", "- model: [", "edited.yaml: "),
    ],
)
def test_a_wrong_config_gets_one_line(
    files: dict[str, Path], tmp_path: Path, old: str, new: str, said: str
) -> None:
    config = edited(MODELS[0], tmp_path, old, new)
    with pytest.raises(SolverBenchError, match=said) as error:
        load_ldm(files[MODELS[0]], config)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({STAGE: None}, "no first stage"),
        ({RAW: None, "model_ema.": None}, "no network"),
        ({"model_ema.diffusion_modelout2bias": None}, "lacks .*: 1, the first is 'conv_out.bias'"),
        ({"model_ema.diffusion_modelout3bias": torch.ones(3)}, "does not know: 1"),
        ({f"{STAGE}encoder.down.0.attn.0.q.bias": torch.ones(3)}, "does not know: 1"),
        ({"cond_stage_model.transformer.x": torch.ones(3)}, "something else than classes"),
        ({"other": torch.ones(3)}, "'other' belongs to no latent diffusion model"),
        ({"betas": torch.linspace(1e-4, 0.02, 1000)}, "betas are not those"),
        ({"scale_factor": torch.tensor(float("nan"))}, "scale_factor is nan"),
        ({"scale_factor": torch.ones(3)}, r"scale_factor is nan, shape \(3,\)"),
        ({"alphas_cumprod": torch.ones(3)}, "has not 1000 steps"),
    ],
)
def test_a_checkpoint_of_other_tensors_gets_one_line(
    files: dict[str, Path], tmp_path: Path, changes: dict[str, Tensor | None], said: str
) -> None:
    file = rewritten(files[MODELS[0]], tmp_path, **changes)
    with pytest.raises(SolverBenchError, match=said):
        load_ldm(file, config_of(MODELS[0]))


def test_training_leftovers_and_half_precision_buffers_do_no_harm(
    files: dict[str, Path], tmp_path: Path
) -> None:
    betas = tensors_of(files[MODELS[1]])["betas"].half()
    extra = {f"{STAGE}loss.logvar": torch.ones(3), "betas": betas}
    file = rewritten(files[MODELS[1]], tmp_path, **extra)
    assert inspect_ldm(file).layout.beta_last == 0.0195  # told from a number of three digits
    load_ldm(file, config_of(MODELS[1]))


def test_wrong_arguments_get_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    plain, config = str(files[MODELS[0]]), str(config_of(MODELS[0]))
    (tmp_path / "text.ckpt").write_text("<html>")
    (tmp_path / "cut.ckpt").write_bytes(files[MODELS[0]].read_bytes()[:-1000])
    made: list[tuple[Golden, str]] = [
        ({}, "needs weights=PATH"),
        ({"weights": str(tmp_path / "no.ckpt")}, "is missing"),
        ({"weights": str(tmp_path / "text.ckpt")}, "refused"),
        ({"weights": str(tmp_path / "cut.ckpt")}, "cut.ckpt: the file is refused"),
        ({"weights": plain}, "give config=PATH"),
        ({"weights": plain, "config": str(tmp_path / "no.yaml")}, "cannot be read"),
        ({"weights": plain, "config": config, "guidance": 2.0}, "no classes to be guided by"),
        ({"weights": plain, "config": config, "guidance": -1.0}, "guidance is -1.0"),
        ({"weights": plain, "config": config, "t_min": 1.0}, "t_min is 1.0"),
        ({"weights": plain, "config": config, "decode_batch": 0}, "decode_batch is 0"),
        ({"weights": plain, "config": config, "size": 0}, "has no option 'size'"),
        ({"weights": str(tmp_path), "config": config}, "leave config away"),
        ({"weights": str(tmp_path)}, "no folders unet"),
    ]
    for options, said in made:
        with pytest.raises(SolverBenchError, match=said):
            load_backbone("ldm", **options)


def test_a_call_hidden_in_the_callbacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = fixture_file("malicious/evil-ldm-callback.ckpt", tmp_path)
    for read in (load_ldm, inspect_ldm):
        with pytest.raises(SolverBenchError, match=r"builtins\.open"):
            read(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

"""Stable Diffusion folders: what is read, what is kept, what is refused."""

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.sd import StableDiffusion
from solverbench.backbones.sd_files import identity, inspect_sd, open_sd
from solverbench.benchmark.load import load_backbone
from solverbench.errors import SolverBenchError
from tests.backbones.sd_cases import (
    ENCODER,
    FOLDER,
    GOLDEN,
    INDEX,
    SCHEDULER,
    SETTINGS,
    UNET,
    VAE,
    VAE_SETTINGS,
    Change,
    close,
    edit,
    prompt_file,
    rewrite,
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def guided(prompts: str) -> StableDiffusion:
    return StableDiffusion(weights=str(FOLDER), prompts=prompts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "sd"))


def test_the_identity_covers_weights_settings_and_prompts(folder: Path, tmp_path: Path) -> None:
    def found(content: str | None, name: str = "a.txt") -> str:
        file = tmp_path / name
        if content is not None:
            file.write_text(content)
        given = str(file) if content is not None else None
        return StableDiffusion(weights=str(folder), prompts=given).weights_sha256

    seen = [found(None), found("a cat\n"), found("a dog\n")]
    assert found("a cat\n", "b.txt") == seen[1]  # where a file lies does not matter
    rewrite(folder / UNET, lambda t: t | {"conv_in.bias": t["conv_in.bias"] + 1})
    seen.append(found("a cat\n"))
    edit(folder / "unet/config.json", norm_eps=1e-4)
    seen.append(found("a cat\n"))
    edit(folder / "scheduler/scheduler_config.json", beta_end=0.013)
    seen.append(found("a cat\n"))
    assert len(set(seen)) == len(seen)


def test_a_folder_is_described_without_building_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it would fail
    facts = inspect_sd(FOLDER)
    assert facts.parameters == {"unet": 144_292, "vae": 67_231, "text_encoder": 38_112}
    assert (facts.state_shape, facts.image_shape) == ((4, 16, 16), (3, 128, 128))
    assert (facts.beta_first, facts.beta_last, facts.output) == (0.00085, 0.012, "eps")
    assert (facts.scaling_factor, facts.context) == (0.18215, (77, 32))
    with pytest.raises(SolverBenchError, match=r"pip install 'solverbench\[sd\]'"):
        StableDiffusion(weights=str(FOLDER))


@torch.no_grad()
def test_files_of_all_releases_load_alike(folder: Path, guided: StableDiffusion) -> None:
    """Names of transformers 5 and 3, attention of old autoencoders, and a type to be widened."""

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {k.removeprefix("text_model."): v for k, v in tensors.items()}
        return named | {"embeddings.position_ids": torch.arange(77)[None]}

    def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, before in names.items():
            tensors = {k.replace(f".{new}.", f".{before}."): v for k, v in tensors.items()}
        assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
        return tensors

    for file, change in ((ENCODER, renamed), (VAE, old)):
        rewrite(folder / file, change)
    rewrite(folder / UNET, lambda t: {k: v.half() for k, v in t.items()})
    made = StableDiffusion(weights=str(folder))
    assert torch.equal(made.null, guided.null)
    assert torch.equal(made.decode(GOLDEN["z"]), guided.decode(GOLDEN["z"]))
    assert torch.equal(made.encode(GOLDEN["enc_image"]), guided.encode(GOLDEN["enc_image"]))
    assert {p.dtype for p in made.network.parameters()} == {torch.float32}
    assert inspect_sd(folder).dtypes == {
        "unet": "float16",
        "vae": "float32",
        "text_encoder": "float32",
    }


@torch.no_grad()
def test_velocities_are_read_as_such(folder: Path, prompts: str, guided: StableDiffusion) -> None:
    edit(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    made = StableDiffusion(weights=str(folder), prompts=prompts)
    assert made.output == "v"
    x, t, condition = GOLDEN["x"], torch.tensor(0.6, dtype=torch.float64), made.condition(range(4))
    v = guided.evaluate(x, t, condition)
    alpha, sigma = (float(f(t)) for f in (made.schedule.alpha, made.schedule.sigma))
    close(made.predict(x, t, condition).x0, alpha * x - sigma * v)


def test_loading_opens_no_socket_and_runs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, guided: StableDiffusion
) -> None:
    """Every way that the libraries have of running a folder's own code, in a good folder."""
    monkeypatch.chdir(folder)
    hostile = "open('PWNED', 'w').close()\nclass Evil: pass\n"
    for name in ("unet/evil.py", "unet/unet.py", "tokenizer/evil.py", "pipeline.py", "evil.py"):
        (folder / name).write_text(hostile)
    edit(folder / "unet/config.json", auto_map=None, _auto_map={"AutoModel": "evil.Evil"})
    edit(
        folder / "text_encoder/config.json",
        auto_map={"AutoModel": "evil.Evil"},
        attn_implementation="evil/kernels",
        quantization_config={"quant_method": "evil"},
    )
    edit(folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "evil.Evil"})
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    made = StableDiffusion(weights=str(folder))
    assert torch.equal(made.null, guided.null)
    assert not (folder / "PWNED").exists()


def json_of(file: str, **changes: Any) -> Change:
    return lambda folder: edit(folder / file, **changes)


def tensors_of(file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    return lambda folder: rewrite(folder / file, change)


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def torn(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def pickles_only(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def half_only(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")


def write(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


BEFORE: dict[str, tuple[Change, str]] = {
    "another pipeline": (json_of(INDEX, _class_name="EvilPipeline"), "wanted: StableDiffusionPipe"),
    "a class of its own": (json_of(INDEX, unet=["evil", "Evil"]), r"allowed: diffusers\.UNet2D"),
    "a class beside": (json_of(INDEX, unet=["diffusers", "UNet2DModel"]), r"\['diffusers', 'UNet2"),
    "a known class of evil": (json_of(INDEX, unet=["os", "UNet2DConditionModel"]), "allowed"),
    "a part of its own": (json_of(INDEX, helper=["os", "system"]), "'helper'.*no such part"),
    "a second encoder": (json_of(INDEX, text_encoder_2=["transformers", "CLIPTextModel"]), "such"),
    "no list": (json_of(INDEX, unet="evil"), "names 'unet' as 'evil'"),
    "no index": (gone(INDEX), r"model_index\.json: is missing"),
    "no JSON": (write(INDEX, "{"), "no readable JSON"),
    "deep JSON": (write(INDEX, "[" * 10**6), "no readable JSON"),
    "an array": (write(SETTINGS, "[]"), "no JSON object"),
    "no network": (gone(UNET), "is missing; other weights there: none"),
    "pickles only": (pickles_only, r"\.bin is a pickle, which is never read"),
    "other weights": (half_only, r"other weights there: diffusion_pytorch_model\.fp16"),
    "no vae": (lambda folder: shutil.rmtree(folder / "vae"), "vae.*is missing"),
    "another network": (json_of(SETTINGS, _class_name="UNet3DConditionModel"), "of class 'UNet3D"),
    "another encoder": (json_of("text_encoder/config.json", architectures=["Evil"]), "of class"),
    "a broken encoder": (json_of("text_encoder/config.json", hidden_size="32"), "hidden_size is"),
    "deep": (json_of(SETTINGS, layers_per_block=10**6), "'layers_per_block' is 1000000"),
    "many blocks": (json_of(SETTINGS, block_out_channels=[8] * 999), "is no setting of a model"),
    "deep in transformers": (json_of(SETTINGS, transformer_layers_per_block=10**8), "no setting"),
    "deep in all": (
        json_of(SETTINGS, transformer_layers_per_block=64, layers_per_block=64),
        "it asks for 16384 blocks",
    ),
    "no widths": (json_of(VAE_SETTINGS, block_out_channels=5), "block_out_channels is 5; wanted"),
    "nan": (json_of(SETTINGS, norm_eps=float("nan")), "'norm_eps' is nan"),
    "an object": (json_of(SETTINGS, act_fn={"a": 1}), "is no setting of a model"),
    "no size": (json_of(SETTINGS, sample_size=None), "sample_size is None"),
    "inpainting": (json_of(SETTINGS, in_channels=9), "in_channels is 9, but out_channels is 4"),
    "another width": (json_of(SETTINGS, cross_attention_dim=16), "but hidden_size is 32"),
    "classes": (json_of(SETTINGS, class_embed_type="timestep"), "sets class_embed_type"),
    "no scale": (json_of(VAE_SETTINGS, scaling_factor=0), "scaling_factor is 0"),
    "shifted": (json_of(VAE_SETTINGS, shift_factor=0.1), "shifts latents"),
    "linear betas": (json_of(SCHEDULER, beta_schedule="linear"), "supported: scaled_linear"),
    "fewer steps": (json_of(SCHEDULER, num_train_timesteps=500), "supported: 1000"),
    "own betas": (json_of(SCHEDULER, trained_betas=[0.1]), "supported: None"),
    "zero at the end": (json_of(SCHEDULER, rescale_betas_zero_snr=True), "supported: False"),
    "x0": (json_of(SCHEDULER, prediction_type="sample"), "supported: epsilon, v_prediction"),
    "no betas": (json_of(SCHEDULER, beta_start=float("nan")), "beta_start is nan"),
}
AFTER: dict[str, tuple[Change, str]] = {
    "torn": (torn, "cannot be read as safetensors"),
    "a tensor less": (
        tensors_of(UNET, lambda t: {k: v for k, v in t.items() if k != "conv_in.bias"}),
        r"lacks tensors: 1, first 'conv_in\.bias'",
    ),
    "an encoder's tensor less": (
        tensors_of(ENCODER, lambda t: {k: v for k, v in t.items() if "final" not in k}),
        "lacks tensors: 2",
    ),
    "a tensor more": (
        tensors_of(VAE, lambda t: t | {"evil": torch.ones(1)}),
        "has tensors too many: 1, first 'evil'",
    ),
    "another shape": (
        tensors_of(VAE, lambda t: t | {"decoder.conv_in.bias": torch.ones(3)}),
        "has tensors of another shape: 1",
    ),
    "a foreign setting": (json_of(SETTINGS, flux="yes"), "'flux' is no setting"),
    "a foreign block": (json_of(SETTINGS, mid_block_type="Evil"), "makes no UNet2DCondition"),
    "a foreign activation": (json_of("text_encoder/config.json", hidden_act="evil"), "makes no"),
    "padding of SD 2": (json_of("tokenizer/tokenizer_config.json", pad_token="!"), "pads with '!'"),
    "no vocabulary": (gone("tokenizer/vocab.json"), r"vocab\.json: is missing"),
    "large tokens": (json_of("tokenizer/vocab.json", evil=578), "does not have"),
    "no end": (write("tokenizer/vocab.json", '{"a": 1}'), "no token for the start"),
    "a list of blocks less": (
        json_of(VAE_SETTINGS, down_block_types=["DownEncoderBlock2D"] * 9),
        "makes no AutoencoderKL",
    ),
    "no merges": (gone("tokenizer/merges.txt"), r"merges\.txt: is missing"),
    "foreign merges": (write("tokenizer/merges.txt", "e vil\n"), "no pair of tokens"),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_wrong_folder_is_refused_before_any_library_is_imported(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reason = BEFORE[case]
    change(folder)
    for library in ("diffusers", "transformers", "evil"):
        monkeypatch.setitem(sys.modules, library, None)  # importing it would fail
    with pytest.raises(SolverBenchError, match=reason) as caught:
        StableDiffusion(weights=str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", AFTER)
def test_wrong_weights_and_settings_get_one_line(case: str, folder: Path) -> None:
    change, reason = AFTER[case]
    change(folder)
    with pytest.raises(SolverBenchError, match=reason) as caught:
        StableDiffusion(weights=str(folder))
    assert "\n" not in str(caught.value)


def test_showing_a_folder_without_merges_names_them(folder: Path) -> None:
    opened = open_sd(folder)
    (folder / "tokenizer/merges.txt").unlink()
    with pytest.raises(SolverBenchError, match=r"merges\.txt: is missing"):
        inspect_sd(folder)
    assert len(identity(opened, None)) == 64  # a file that goes meanwhile is no traceback


def test_what_the_system_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x" * 5000, "a/" + "x" * 5000):
        for read in (open_sd, inspect_sd):
            with pytest.raises(SolverBenchError, match="cannot be read: File name too long"):
                read(Path(name))

    def refused(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    opened = open_sd(folder)
    monkeypatch.setattr(Path, "open", refused)
    for call in (lambda: identity(opened, None), lambda: inspect_sd(folder)):
        with pytest.raises(SolverBenchError, match="cannot be read: Permission denied"):
            call()


def test_missing_folders_and_bad_options_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="needs weights=FOLDER"):
        StableDiffusion()
    with pytest.raises(SolverBenchError, match="is no folder"):
        open_sd(tmp_path / "none")
    with pytest.raises(SolverBenchError, match="guidance is -1"):
        load_backbone("sd", weights=str(FOLDER), guidance=-1.0)
    with pytest.raises(SolverBenchError, match="option dtype is 'float64'"):
        load_backbone("sd", weights=str(FOLDER), dtype="float64")

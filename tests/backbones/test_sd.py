"""Stable Diffusion folders: the original's numbers, a pipeline's latents, and hostile folders."""

import copy
import importlib
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from solverbench.backbones.prompts import GROUP, Embeddings, read_prompts
from solverbench.backbones.sd import StableDiffusion
from solverbench.backbones.sd_files import inspect_sd, open_sd
from solverbench.benchmark.conformance import check_backbone
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.errors import SolverBenchError
from solverbench.solvers import Batch, FitTask, Setting, sample
from solverbench.solvers.gs import GS
from tests.backbones.emit import DATA, goldens

FOLDER = DATA / "sd-v1-tiny"
GOLDEN = goldens("sd-v1-tiny")
BROKEN = (GOLDEN["t_frac"].double() + 1) / 1000  # t_cont of the goldens is this, rounded to float32
PROMPTS = [str(prompt) for prompt in GOLDEN["prompts"]]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def guided(prompts: str) -> StableDiffusion:
    return StableDiffusion(weights=str(FOLDER), prompts=prompts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "sd"))


def close(value: Tensor, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-5, check_dtype=False)


def gap(value: Tensor | None, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted entry."""
    assert value is not None
    return float((value.detach() - wanted).abs().max() / wanted.abs().max())


def rows(made: StableDiffusion, times: Tensor, condition: Any) -> Tensor:
    """Outputs for the golden states, a time and a prompt a row."""
    given = [condition[i : i + 1] if condition is not None else None for i in range(4)]
    x = GOLDEN["x"]
    return torch.cat([made.evaluate(x[i : i + 1], times[i], given[i]) for i in range(4)])


def edit(path: Path, **changes: Any) -> None:
    """Change settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file."""
    save_file(change({k: v.clone() for k, v in load_file(path).items()}), path)


@torch.no_grad()
def test_prompts_become_the_tokens_and_embeddings_of_the_original(guided: StableDiffusion) -> None:
    assert torch.equal(guided.prompts.token_ids(PROMPTS), GOLDEN["input_ids"])
    assert torch.equal(guided.prompts.token_ids([""]), GOLDEN["uncond_input_ids"])
    close(guided.context(torch.arange(4)), GOLDEN["cond_embed"])
    close(guided.null_context(1), GOLDEN["uncond_embed"])


def test_odd_prompts_become_the_tokens_of_the_library(guided: StableDiffusion) -> None:
    from transformers import CLIPTokenizer

    whole = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer", local_files_only=True)
    odd = [
        "",
        "A  cat,\tof\xa0COURSE!! it's 123",
        "h\u00e9llo \u65e5\u672c \U0001f600",
        "the cat " * 90,
    ]
    odd += ["a <|endoftext|> b", "<|startoftext|>"]
    fixed = {"padding": "max_length", "truncation": True, "max_length": 77}
    wanted = whole(odd, **fixed, return_tensors="pt").input_ids
    assert torch.equal(guided.prompts.token_ids(odd), wanted)


@torch.no_grad()
def test_the_network_meets_the_original_at_whole_and_broken_steps(
    guided: StableDiffusion,
) -> None:
    alone = StableDiffusion(weights=str(FOLDER))
    plain = copy.copy(guided)
    plain.guidance = 1.0
    condition = guided.condition(range(4))
    torch.testing.assert_close(BROKEN, GOLDEN["t_cont"], rtol=6e-8, atol=1e-10)
    whole = (GOLDEN["t_int"].double() + 1) / 1000
    close(rows(plain, whole, condition), GOLDEN["eps_t_int"])
    close(rows(plain, BROKEN, condition), GOLDEN["eps_t_frac"])
    close(rows(guided, BROKEN, condition), GOLDEN["eps_cfg_t_frac"])
    for made in (guided, alone):
        close(rows(made, BROKEN, None), GOLDEN["eps_uncond_t_frac"])
    assert guided.guidance == float(GOLDEN["guidance_scale"])


def test_gradients_meet_the_original(guided: StableDiffusion) -> None:
    plain = copy.copy(guided)
    plain.guidance = 1.0
    condition = plain.condition(range(4))
    for i in range(4):
        x = GOLDEN["x"][i : i + 1].clone().requires_grad_()
        t = BROKEN[i].clone().requires_grad_()
        eps = plain.evaluate(x, t, condition[i : i + 1] if condition else None)
        (eps * GOLDEN["cotangent"][i]).sum().backward()
        assert gap(x.grad, GOLDEN["grad_x"][i : i + 1]) < 1e-4  # float32, as the fixtures advise
        assert t.grad is not None
        step = float(GOLDEN["grad_t_frac"][i])
        assert float(t.grad) / 1000 == pytest.approx(step, rel=1e-3, abs=1e-6)  # likewise


@torch.no_grad()
def test_latents_become_the_images_of_the_original_and_back(guided: StableDiffusion) -> None:
    close(guided.decode(GOLDEN["z"]), GOLDEN["image"])
    close(guided.encode(GOLDEN["enc_image"]), GOLDEN["enc_latent_mean"])
    three = torch.cat([GOLDEN["z"], GOLDEN["z"].flip(2), GOLDEN["z"]]).double()
    small = StableDiffusion(weights=str(FOLDER), decode_batch=2, channels_last=True)
    images = small.decode(three)
    assert images.dtype == torch.float64
    close(images, torch.cat([guided.decode(z[None]) for z in three]))


def test_the_schedule_is_the_originals_in_float64(guided: StableDiffusion) -> None:
    found = guided.schedule.alphas_cumprod  # type: ignore[attr-defined]
    # the original multiplies 1000 factors in float32
    torch.testing.assert_close(found.float(), GOLDEN["alphas_cumprod"], rtol=2e-6, atol=0)
    assert float(guided.schedule.sigma(1.0)) == pytest.approx(0.99766723, rel=1e-8)  # backbones.md
    assert float(guided.schedule.lam(1e-3)) == pytest.approx(3.534712, rel=1e-6)
    with pytest.raises(ValueError, match="between 0 and 1"):
        StableDiffusion(weights=str(FOLDER), t_min=0.0)


@torch.no_grad()
@pytest.mark.parametrize("nfe", [4, 10])
def test_ddim_gives_the_latents_of_a_diffusers_pipeline(nfe: int, guided: StableDiffusion) -> None:
    """``trailing`` starts at step 999; without ``set_alpha_to_one`` it ends at step 0, t = 1e-3."""
    diffusers = importlib.import_module("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        FOLDER, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    noise = guided.noise(range(4))
    wanted = pipeline(
        PROMPTS, latents=noise, guidance_scale=7.5, num_inference_steps=nfe, output_type="latent"
    ).images
    times = [(int(step) + 1) / 1000 for step in pipeline.scheduler.timesteps] + [1 / 1000]
    tableau = load_solver("ddim", guided, nfe=nfe, schedule=times).tableau()
    found = sample(guided, tableau, noise, guided.condition(range(4)))
    assert gap(found, wanted) < 1e-4  # its schedule is in float32, and guidance amplifies


def test_the_adapter_conforms_with_and_without_prompts(prompts: str) -> None:
    for options in ({"prompts": prompts}, {"guidance": 1.0}):
        checks = check_backbone("sd", weights=str(FOLDER), **options)
        assert [c for c in checks if not c.passed] == []


@torch.no_grad()
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ipndm-2", "unipc-3"])
def test_any_solver_runs_and_guided_rows_count_twice(solver: str, guided: StableDiffusion) -> None:
    tableau = load_solver(solver, guided, nfe=5).tableau()
    with guided.counting() as count:
        states = sample(guided, tableau, guided.noise([7, 8]), guided.condition([7, 8]))
    assert bool(states.isfinite().all())
    assert (count.calls, count.samples, count.rows) == (5, 10, 20)
    with guided.counting() as count:
        sample(guided, tableau, guided.noise([7, 8]), None)
    assert (count.calls, count.samples, count.rows) == (5, 10, 10)


def test_prompts_follow_the_seed(guided: StableDiffusion) -> None:
    condition = guided.condition([0, 3, 4, 50_001])
    assert condition is not None
    assert condition.labels.tolist() == [0, 3, 0, 1]
    assert StableDiffusion(weights=str(FOLDER)).condition([0, 3]) is None


@torch.no_grad()
def test_options_change_rounding_only(guided: StableDiffusion, prompts: str) -> None:
    x, t, condition = GOLDEN["x"], torch.tensor(0.4321), guided.condition(range(4))
    wanted = guided.evaluate(x, t, condition)
    options: list[Any] = [
        {"guidance_calls": "sequential"},
        {"attention": "eager"},
        {"channels_last": True},
    ]
    for option in options:
        made = StableDiffusion(weights=str(FOLDER), prompts=prompts, **option)
        assert gap(made.evaluate(x, t, condition), wanted) < 5e-5  # guidance: roundings, times 14


@torch.no_grad()
def test_bfloat16_is_for_the_network_only_and_steps_stay_exact(prompts: str) -> None:
    made = StableDiffusion(weights=str(FOLDER), prompts=prompts, guidance=1.0, dtype="bfloat16")
    steps: list[Tensor] = []
    handle = made.network.time_proj.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, args: steps.append(args[0])
    )
    eps = rows(made, BROKEN, made.condition(range(4)))
    handle.remove()
    # float32 keeps 1000 t - 1 to 6e-5; bfloat16 would be off by 1.1 at 998.9
    torch.testing.assert_close(torch.cat(steps), GOLDEN["t_frac"], rtol=0, atol=1e-4)
    assert {p.dtype for p in made.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in (*made.encoder.parameters(), *made.decoder.parameters())} == {
        torch.float32
    }
    assert eps.dtype == torch.float32
    assert 1e-4 < float((eps - GOLDEN["eps_t_frac"]).abs().max()) < 0.25  # 0.1 in backbones.md


def bits_and_saved(backbone: StableDiffusion) -> tuple[int, Tensor, Tensor]:
    """Numbers kept for the backward pass, and the gradients of state and time."""
    x = GOLDEN["x"].clone().requires_grad_()
    t = torch.tensor(0.777, dtype=torch.float64, requires_grad=True)
    sizes: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        eps = backbone.evaluate(x, t, backbone.condition(range(4)))
    (eps * GOLDEN["cotangent"]).sum().backward()
    assert x.grad is not None
    assert t.grad is not None
    return sum(sizes), x.grad, t.grad


def test_gradient_checkpointing_gives_the_same_bits(guided: StableDiffusion, prompts: str) -> None:
    made = StableDiffusion(weights=str(FOLDER), prompts=prompts, gradient_checkpointing=True)
    kept = [bits_and_saved(backbone) for backbone in (guided, made)]
    assert torch.equal(kept[0][1], kept[1][1])
    assert torch.equal(kept[0][2], kept[1][2])
    assert kept[1][0] < 0.5 * kept[0][0]  # activations were in fact left out


def test_gs_learns_on_guided_latents(guided: StableDiffusion) -> None:
    condition, noise = guided.condition(range(2)), guided.noise(range(2))
    teacher = load_solver("ipndm-2", guided, nfe=8).tableau()
    with torch.no_grad():
        target = sample(guided, teacher, noise, condition)
    task = FitTask(
        sample=lambda tableau, x, given: sample(guided, tableau, x, given),
        distance=lambda student, wanted: (student - wanted).abs().flatten(1).mean(1),
        lr=2e-3,
        clip=1.0,
        rng=torch.Generator().manual_seed(0),
    )
    rule = GS(Setting(guided.schedule, 3, guided.output)).rule(task)
    batch = Batch(noise, target, condition, torch.arange(2))
    losses = [float(rule.step(batch, 1.0)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0], losses  # the same batch 20 times


@torch.no_grad()
def test_embeddings_are_made_once_and_their_bits_do_not_depend_on_the_past(
    guided: StableDiffusion,
) -> None:
    lines = [f"a photo of cat {i}" for i in range(GROUP)] + ["a bus", "", "a bus"]
    asked: list[int] = []
    handle = guided.encoder.register_forward_pre_hook(
        lambda module, args: asked.append(len(args[0]))
    )
    made = [Embeddings(guided.encoder, guided.prompts.tokenizer, lines, 77, n) for n in (1, 10**7)]
    wanted = made[1].of(range(len(lines)))
    assert torch.equal(made[1].of([18, 3, 3, 17]), wanted[[18, 3, 3, 17]])
    assert torch.equal(wanted[16], wanted[18])
    assert asked == [GROUP, 2]  # equal prompts count once
    again = [made[0].of([line]) for line in (17, 2, 18, 16, 0)]
    handle.remove()
    assert torch.equal(torch.cat(again), wanted[[17, 2, 18, 16, 0]])
    assert asked == [GROUP, 2, 2, GROUP, 2, GROUP]  # the smallest table keeps one group
    assert len(made[0].groups) == 1


def test_a_line_of_text_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\r\nline\u2028two\x0b\n\n".encode())
    assert read_prompts(path) == ["one", "", "line\u2028two\x0b", ""]
    path.write_text("no newline")
    assert read_prompts(path) == ["no newline"]
    path.write_text("\n")
    assert read_prompts(path) == [""]
    for content, reason in ((b"", "is empty"), (b"\xff\xfe", "no UTF-8"), (None, "cannot be read")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SolverBenchError, match=reason):
            StableDiffusion(weights=str(FOLDER), prompts=str(path))


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
    assert inspect_sd(folder).dtypes == {"unet": "F16", "vae": "F32", "text_encoder": "F32"}


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


INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
SETTINGS = "unet/config.json"
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
    "an object": (json_of(SETTINGS, act_fn={"a": 1}), "is no setting of a model"),
    "no size": (json_of(SETTINGS, sample_size=None), "sample_size is None"),
    "inpainting": (json_of(SETTINGS, in_channels=9), "in_channels is 9, but out_channels is 4"),
    "another width": (json_of(SETTINGS, cross_attention_dim=16), "but hidden_size is 32"),
    "classes": (json_of(SETTINGS, class_embed_type="timestep"), "sets class_embed_type"),
    "no scale": (json_of("vae/config.json", scaling_factor=0), "scaling_factor is 0"),
    "shifted": (json_of("vae/config.json", shift_factor=0.1), "shifts latents"),
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


def test_missing_folders_and_bad_options_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="needs weights=FOLDER"):
        StableDiffusion()
    with pytest.raises(SolverBenchError, match="is no folder"):
        open_sd(tmp_path / "none")
    with pytest.raises(SolverBenchError, match="guidance is -1"):
        load_backbone("sd", weights=str(FOLDER), guidance=-1.0)
    with pytest.raises(SolverBenchError, match="option dtype is 'float64'"):
        load_backbone("sd", weights=str(FOLDER), dtype="float64")


def test_every_part_is_frozen(guided: StableDiffusion) -> None:
    modules = [m for m in vars(guided).values() if isinstance(m, nn.Module)]
    assert len(modules) == 3
    assert not any(p.requires_grad or p.is_meta for m in modules for p in m.parameters())
    assert not any(m.training or any(b.is_meta for b in m.buffers()) for m in modules)

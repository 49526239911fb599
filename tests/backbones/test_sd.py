"""Stable Diffusion: the original's numbers, a pipeline's latents, prompts and options."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverbench.backbones import prompts as prompt_files
from solverbench.backbones.prompts import GROUP, Embeddings, read_prompts
from solverbench.backbones.sd import StableDiffusion
from solverbench.benchmark.conformance import check_backbone
from solverbench.benchmark.load import load_solver
from solverbench.errors import SolverBenchError
from solverbench.solvers import Batch, FitTask, Setting, sample
from solverbench.solvers.gs import GS
from tests.backbones.sd_cases import FOLDER, GOLDEN, PROMPTS, close, gap, prompt_file

BROKEN = (GOLDEN["t_frac"].double() + 1) / 1000  # t_cont of the goldens is this, rounded to float32


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def guided(prompts: str) -> StableDiffusion:
    return StableDiffusion(weights=str(FOLDER), prompts=prompts)


def rows(made: StableDiffusion, times: Tensor, condition: Any) -> Tensor:
    """Outputs for the golden states, a time and a prompt a row."""
    given = [condition[i : i + 1] if condition is not None else None for i in range(4)]
    x = GOLDEN["x"]
    return torch.cat([made.evaluate(x[i : i + 1], times[i], given[i]) for i in range(4)])


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
    scale = float(GOLDEN["guidance_scale"])  # guidance carries both halves' rounding s + s - 1 fold
    close(rows(guided, BROKEN, condition), GOLDEN["eps_cfg_t_frac"], atol=2e-5 * (2 * scale - 1))
    for made in (guided, alone):
        close(rows(made, BROKEN, None), GOLDEN["eps_uncond_t_frac"])
    assert guided.guidance == scale


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


def test_a_device_or_a_large_file_is_no_list_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "LARGEST", 10)
    (tmp_path / "long.txt").write_text("a cat\n" * 2)
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "long.txt"):
        with pytest.raises(SolverBenchError, match=r"no file of prompts.* up to 10 bytes"):
            read_prompts(path)
    with pytest.raises(SolverBenchError, match="cannot be read: File name too long"):
        read_prompts(Path("x" * 5000))


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


def test_every_part_is_frozen(guided: StableDiffusion) -> None:
    modules = [m for m in vars(guided).values() if isinstance(m, nn.Module)]
    assert len(modules) == 3
    assert not any(p.requires_grad or p.is_meta for m in modules for p in m.parameters())
    assert not any(m.training or any(b.is_meta for b in m.buffers()) for m in modules)

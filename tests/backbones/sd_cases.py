"""What the tests of Stable Diffusion share: the fixture, and folders made from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backbones.emit import DATA, goldens

FOLDER = DATA / "sd-v1-tiny"
GOLDEN = goldens("sd-v1-tiny")
PROMPTS = [str(prompt) for prompt in GOLDEN["prompts"]]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
SETTINGS, VAE_SETTINGS = "unet/config.json", "vae/config.json"
Change = Callable[[Path], None]


def prompt_file(folder: Path) -> str:
    """The golden prompts, one a line."""
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return str(path)


def close(value: Tensor, wanted: Tensor, atol: float = 2e-5) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=atol, check_dtype=False)


def gap(value: Tensor | None, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted entry."""
    assert value is not None
    return float((value.detach() - wanted).abs().max() / wanted.abs().max())


def edit(path: Path, **changes: Any) -> None:
    """Change settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file."""
    save_file(change({k: v.clone() for k, v in load_file(path).items()}), path)

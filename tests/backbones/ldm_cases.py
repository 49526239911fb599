"""What the tests of latent diffusion models share: fixtures, and files made from them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench.backbones.base import Condition
from solverbench.backbones.ldm import LDM
from solverbench.backbones.ldm_checkpoint import NAMES
from solverbench.benchmark.load import load_backbone
from solverbench.sources import open_source
from solverbench.torchfile import read_any
from tests.backbones.emit import DATA, fixture_file

MODELS = ["ldm-tiny-uncond-vq", "ldm-tiny-cin-vq"]
Golden = dict[str, Any]


def unpacked(folder: Path) -> dict[str, Path]:
    """The checkpoints as files."""
    return {name: fixture_file(f"{name}.ckpt", folder) for name in MODELS}


def config_of(name: str) -> Path:
    return DATA / f"{name}.config.yaml"


def model(files: dict[str, Path], name: str, **options: Any) -> LDM:
    made = load_backbone("ldm", weights=str(files[name]), config=str(config_of(name)), **options)
    assert isinstance(made, LDM)
    return made


def condition(golden: Golden) -> Condition | None:
    return Condition(golden["class_idx"]) if "class_idx" in golden else None


def close(value: Tensor, wanted: Tensor) -> None:
    """The tolerance that goes with the fixtures, for float32 on a CPU."""
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-5, check_dtype=False)


def gap(value: Tensor | None, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted entry."""
    assert value is not None
    return float((value.detach() - wanted).abs().max() / wanted.abs().max())


def edited(name: str, folder: Path, old: str, new: str) -> Path:
    """A config with one change."""
    text = config_of(name).read_text()
    assert old in text
    path = folder / "edited.yaml"
    path.write_text(text.replace(old, new))
    return path


def tensors_of(file: Path) -> dict[str, Tensor]:
    with open_source(file) as source:
        return {k: v.read() for k, v in read_any(source, NAMES)["state_dict"].items()}


def rewritten(file: Path, folder: Path, **changes: Tensor | None) -> Path:
    """A checkpoint of torch's own making, with tensors changed or, for None, left away.

    A key stands for all tensors that start with it.
    """
    state = tensors_of(file)
    for start, value in changes.items():
        for key in [k for k in state if k.startswith(start)] or [start]:
            state.pop(key, None)
            if value is not None:
                state[key] = value
    path = folder / "rewritten.ckpt"
    torch.save({"state_dict": state, "global_step": 1}, path)
    return path

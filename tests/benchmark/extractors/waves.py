"""Weights that any machine can make again, in small files: windows of a few numbers."""

import math

import torch
from torch import Tensor

from solverbench.benchmark.extractors.inception_network import Inception

VGG_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def window(shape: tuple[int, ...], phase: int) -> Tensor:
    """Numbers as of fresh weights; rows overlap, so that a file stays small."""
    inner = math.prod(shape[1:])
    places = torch.arange(7 * shape[0] + inner)
    noise = (places * places * 7919 + places * (104729 + phase)) % 65537 / 65537 - 0.5
    base = noise * math.sqrt(24 / inner)  # variance 2 / inputs, right for ReLU
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return base.as_strided(shape, (7, *strides[1:]))


def inception_state() -> dict[str, Tensor]:
    """As the published file: with a classifier, whose numbers nothing reads."""
    state = {}
    for i, (key, value) in enumerate(Inception().state_dict().items()):
        line = torch.linspace(0.0, 1.0, len(value)) if value.ndim == 1 else value
        if key.endswith("conv.weight"):
            state[key] = window(tuple(value.shape), i % 11)
        elif key.endswith(("running_var", "bn.weight")):
            state[key] = 0.5 + line
        elif key.endswith(("running_mean", "bn.bias")):
            state[key] = 0.2 * line - 0.1
        else:
            state[key] = torch.tensor(0)
    return state | {"fc.weight": torch.zeros(1).expand(1008, 2048), "fc.bias": torch.zeros(1008)}


def vgg_state() -> dict[str, Tensor]:
    """As torchvision's file."""
    state, place, now = dict[str, Tensor](), 0, 3
    for width in VGG_WIDTHS:
        if width:
            state[f"features.{place}.weight"] = window((width, now, 3, 3), place % 7)
            state[f"features.{place}.bias"] = torch.linspace(-0.1, 0.1, width)
        place, now = place + (2 if width else 1), width or now
    for i, size in ((0, 512 * 49), (3, 4096), (6, 4096)):
        state[f"classifier.{i}.weight"] = window((1000 if i == 6 else 4096, size), i)
        state[f"classifier.{i}.bias"] = torch.linspace(-0.1, 0.1, 1000 if i == 6 else 4096)
    return state


def pictures() -> Tensor:
    """Two images, (2, 3, 24, 40), uint8."""
    places = torch.arange(2 * 3 * 24 * 40).view(2, 3, 24, 40)
    return ((places * places // 7 + 31 * places) % 256).to(torch.uint8)

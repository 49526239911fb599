"""Files in the layout of the paper's published ones, written as its authors' code writes them."""

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone, Condition
from solverbench.backbones.gaussian import Gaussian
from tests.problems import golden

NUM = 200
PROMPTS = ["a cat", "two dogs ", "", "a cat", "snow"]


class Labelled(Gaussian):
    """Latents with classes, which the network ignores."""

    num_classes = 7

    def condition(self, seeds: Sequence[int]) -> Condition:
        return Condition(torch.tensor([seed % self.num_classes for seed in seeds]))


class Prompted(Labelled):
    """Latents with prompts."""

    num_classes = 0
    prompt_lines = PROMPTS

    def condition(self, seeds: Sequence[int]) -> Condition:
        return Condition(torch.tensor([seed % len(PROMPTS) for seed in seeds]))


BACKBONES: dict[str, type[Gaussian]] = {"none": Gaussian, "class": Labelled, "prompt": Prompted}


def backbone_of(kind: str) -> Backbone:
    return BACKBONES[kind](shape=(3, 8, 8))


def published(kind: str = "none", latents: bool = True, num: int = NUM) -> dict[str, Any]:
    """A teacher set of random numbers in the published layout."""
    rng = torch.Generator().manual_seed(5)
    noise, states = (torch.randn(num, 3, 8, 8, generator=rng) for _ in range(2))
    size = 16 if latents else 8
    found: dict[str, Any] = defaultdict(list)
    found["noise"] = noise
    found["images"] = torch.rand(num, 3, size, size, generator=rng) if latents else 0.4 * states
    found["latents"] = 0.7 * states if latents else [None] * num
    conditions = {
        "none": [None] * num,
        "class": torch.arange(num) % 7,
        "prompt": [PROMPTS[row % len(PROMPTS)].strip() for row in range(num)],
    }
    found["condition"] = conditions[kind]
    return found


def write(path: Path, found: Any, form: str = "pickle") -> Path:
    """A plain pickle, or a file of ``torch.save``."""
    if form == "torch":
        torch.save(found, path)
    else:
        path.write_bytes(pickle.dumps(found, protocol=int(form.removeprefix("pickle") or 4)))
    return path


Change = Callable[[dict[str, Any]], Any]


def changed(**values: Any) -> Change:
    return lambda found: found | values


def swapped(one: str, other: str) -> Change:
    return lambda found: found | {one: found[other], other: found[one]}


def without(key: str) -> Change:
    return lambda found: {name: value for name, value in found.items() if name != key}


def shadows(theta: Tensor, xi: Tensor, c: Tensor, a: Tensor) -> list[Tensor]:
    """Tensors in the order in which the reference registers them."""
    used = torch.ones_like(c).triu() if c.shape[1] else c  # lag i is used from step i - 1 on
    rows = [row for pair in zip(c * used, a * used, strict=True) for row in pair]
    return [theta, xi, *rows]


def names_of(num: int) -> list[str]:
    return ["mu_logit", "t_couple", *(f"{k}{i}_diff" for i in range(1, num // 2) for k in "ca")]


def checkpoint(averages: list[Tensor], raw: list[Tensor] | None = None) -> dict[str, Any]:
    """A student in the published layout."""
    raw = averages if raw is None else raw
    parameters = [torch.nn.Parameter(value.clone()) for value in raw]
    optim = torch.optim.Adam(parameters, lr=1e-3)
    sum(p.sum() for p in parameters).backward()
    optim.step()
    return {
        "ema": {
            "decay": 0.999,
            "num_updates": 50,
            "shadow_params": averages,
            "collected_params": None,
        },
        "model": OrderedDict(zip(names_of(len(raw)), raw, strict=False)),
        "optim": optim.state_dict(),
        "step": 50,
    }


def trained(part: str) -> list[Tensor]:
    """The reference's own training run of three steps: ``ema`` or ``final`` tensors."""
    data = golden("train_gs")
    return shadows(*(data[f"gs_l2__{part}_{key}"] for key in ("mu_logit", "xi", "c", "a")))

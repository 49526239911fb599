"""R3GAN discriminators from published pickles, read without running them.

Source: gs-gas.md section 8.2; R3GAN (arXiv 2501.05441).
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from solverbench.discriminator import R3GANDiscriminator, of_state
from solverbench.errors import SolverBenchError
from solverbench.sources import open_source, refuse
from solverbench.torchfile import NUMPY, Stored, module_tensors, read_pickle
from solverbench.unpickle import Meaning, Name, Names, Record

PREFIX = "Model."
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PARTS = {
    "Networks": (
        *("Generator", "Discriminator", "GeneratorStage", "DiscriminatorStage", "ResidualBlock"),
        *("UpsampleLayer", "DownsampleLayer", "GenerativeBasis", "DiscriminativeBasis"),
        "Convolution",
    ),
    "Resamplers": (
        *("InterpolativeUpsamplerCUDA", "InterpolativeDownsamplerCUDA"),
        *("InterpolativeUpsamplerReference", "InterpolativeDownsamplerReference"),
    ),
    "FusedOperators": ("BiasedActivationCUDA", "BiasedActivationReference"),
}


class StagedDiscriminator(R3GANDiscriminator):
    """A discriminator whose stages compute in types of their own; weights stay float32.

    Args:
        made: sizes and weights.
        dtypes: of each stage; the convolution from the image computes in the first.
    """

    def __init__(self, made: R3GANDiscriminator, dtypes: tuple[torch.dtype, ...]) -> None:
        num_outputs = len(list(made.parameters())[-1])
        super().__init__(*made.sizes, made.num_channels, num_outputs)
        self.load_state_dict(made.state_dict(), assign=True)
        self.dtypes = dtypes

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B,), float32, of images x (B, C, H, W)."""
        x = _in_dtype(self.ExtractionLayer, x, self.dtypes[0])
        for stage, dtype in zip(self.MainLayers, self.dtypes, strict=True):
            x = _in_dtype(stage, x, dtype)
        return x.float().sum(1)


def load_published(
    path: Path, precision: Literal["float32", "stored"] = "float32"
) -> R3GANDiscriminator:
    """The discriminator ``D`` of a published R3GAN file, without its label embedding.

    Args:
        path: the pickle.
        precision: ``float32``, or the mixed precision that the file asks for.

    Returns:
        The discriminator, float32 weights, ready for training.

    Raises:
        SolverBenchError: for a missing, damaged, foreign or hostile file.
        ValueError: for another precision.
    """
    if precision not in ("float32", "stored"):
        raise ValueError(f"precision is {precision!r}; allowed: float32, stored")
    if not path.is_file():
        raise SolverBenchError(f"{path} is missing: an R3GAN discriminator belongs there")
    with open_source(path) as source:
        tree = read_pickle(source, NAMES)
        if not isinstance(tree, dict) or type(tree.get("D")) is not Record:
            refuse("it holds no network under 'D'")
        stored, dtypes = _tensors(tree["D"]), _dtypes(tree["D"])
        made = _checked({key: value.read().float() for key, value in stored.items()})
    if len(dtypes) != len(made.MainLayers):
        raise SolverBenchError(f"{path}: the stages of the discriminator have no types")
    return StagedDiscriminator(made, dtypes) if precision == "stored" else made


def _in_dtype(module: torch.nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    tensors = {key: value.to(dtype) for key, value in module.named_parameters()}
    done: Tensor = functional_call(module, tensors, (x.to(dtype),))
    return done


def _tensors(network: Record) -> dict[str, Stored]:
    """Tensors by the names that our own discriminator has; the embedding is left out."""
    found = {k.removeprefix(PREFIX): v for k, v in module_tensors(network).items()}
    return {k: v for k, v in found.items() if not k.startswith("EmbeddingLayer.")}


def _checked(state: dict[str, Tensor]) -> R3GANDiscriminator:
    with torch.device("meta"):  # sizes first: a hostile file asks for any
        of_state({key: value.to("meta") for key, value in state.items()})
    return of_state(state)


def _dtypes(network: Record) -> tuple[torch.dtype, ...]:
    """Type of each stage, as stored."""
    inner: Any = network.state["_modules"].get("Model", network)
    stages = inner.state["_modules"].get("MainLayers") if type(inner) is Record else None
    children = stages.state["_modules"].values() if type(stages) is Record else ()
    labels = [child.state.get("DataType") for child in children if type(child) is Record]
    if not all(type(label) is Name and label.name in DTYPES for label in labels):
        refuse("a stage of the discriminator has no type")
    return tuple(DTYPES[label.name] for label in labels if type(label) is Name)


def _names() -> Names:
    made: dict[tuple[str, str], Meaning] = dict(NUMPY)
    for package in ("R3GAN", "BaselineGAN"):
        for module, parts in PARTS.items():
            made |= {(f"{package}.{module}", part): "record" for part in parts}
    for package in ("training.networks", "training.networks_baseline"):
        made |= {(package, part): "record" for part in ("Generator", "Discriminator")}
    made |= {("torch", name): "label" for name in DTYPES}
    for path in ("container.ModuleList", "conv.Conv2d", "linear.Linear"):
        module, _, name = path.partition(".")
        made[f"torch.nn.modules.{module}", name] = "record"
    made["training.augment", "AugmentPipe"] = "record"  # training only; never used
    made["dnnlib.util", "EasyDict"] = "dict"
    return made


NAMES: Names = _names()

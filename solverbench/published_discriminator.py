"""R3GAN discriminators from published pickles, read without running them; a leaf.

Source: gs-gas.md section 8.2; R3GAN (arXiv 2501.05441).
"""

from pathlib import Path
from typing import Any

from solverbench import weights
from solverbench.discriminator import (
    DTYPES,
    MOST_STAGES,
    R3GANDiscriminator,
    check_precision,
    load,
    of_state,
)
from solverbench.errors import MissingWeightsError
from solverbench.files import sha256_of
from solverbench.sources import Source, expect_file, open_source, refuse
from solverbench.torchfile import NUMPY, Stored, module_tensors, read_published
from solverbench.unpickle import Meaning, Name, Names, Record

PREFIX = "Model."
ENDINGS = (".pkl", ".safetensors")
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


def load_file(path: Path, precision: str = "float32") -> R3GANDiscriminator:
    """A discriminator from a published pickle or from safetensors, told apart by the end.

    Args:
        path: the file.
        precision: ``float32``, or the mixed precision that the file asks for (``stored``).

    Returns:
        The discriminator, float32 weights, ready for training.

    Raises:
        SolverBenchError: for a missing, damaged, foreign or hostile file.
        ValueError: for another precision.
    """
    check_precision(precision)
    if path.suffix == ".safetensors":
        return load(path, precision)
    return load_published(path, precision)


def load_published(path: Path, precision: str = "float32") -> R3GANDiscriminator:
    """The same from a published pickle, whatever its name ends in."""
    check_precision(precision)
    expect_file(path, "the pickle of an R3GAN discriminator")
    with open_source(path) as source:
        made = read(source)
    made.dtypes = made.dtypes if precision == "stored" else None
    return made


def published() -> list[str]:
    """Names of published discriminators, as ``solverbench weights list`` shows them."""
    return [n for n, item in weights.catalogue().items() if item.kind == "discriminator"]


def file_of(name: str) -> Path | None:
    """The file that a path or the name of a published discriminator stands for; None otherwise.

    Args:
        name: a path ends in .pkl or .safetensors.

    Raises:
        MissingWeightsError: for a published file that is not here.
    """
    if name.endswith(ENDINGS):
        return Path(name)
    return weights.require(name)[0] if name in published() else None


def sha256_here(name: str) -> str:
    """The checksum of that file; empty where there is none on this machine."""
    try:
        return sha256_of(file_of(name))
    except MissingWeightsError:
        return ""


def read(source: Source) -> R3GANDiscriminator:
    """The discriminator ``D`` of a published pickle, without its label embedding.

    Raises:
        SolverBenchError: for a damaged, foreign or hostile file.
    """
    tensors, names = inspect(source)
    kept = {k: v for k, v in tensors.items() if not k.startswith("EmbeddingLayer.")}
    made = of_state({key: value.read().float() for key, value in kept.items()})
    if len(names) != len(made.MainLayers):
        refuse("the stages of the discriminator have no types")
    made.dtypes = tuple(DTYPES[name] for name in names)
    return made


def inspect(source: Source) -> tuple[dict[str, Stored], list[str]]:
    """What a published pickle holds, without reading the weights.

    Returns:
        Tensors by the names that our own discriminator has, the embedding too, and the type that
        each stage computes in.

    Raises:
        SolverBenchError: for a file without a network under ``D``, or stages without types.
    """
    tree = read_published(source, NAMES)
    network = tree.get("D") if isinstance(tree, dict) else None
    if type(network) is not Record:
        refuse("it holds no network under 'D', as R3GAN's pickles do")
    tensors = {k.removeprefix(PREFIX): v for k, v in module_tensors(network).items()}
    return tensors, _types(network)


def _types(network: Record) -> list[str]:
    """Names of the types of the stages, in order; the modules have been checked."""
    inner: Any = network.state["_modules"].get("Model", network)
    stages = inner.state["_modules"].get("MainLayers") if type(inner) is Record else None
    children = stages.state["_modules"].values() if type(stages) is Record else ()
    labels = [child.state.get("DataType") for child in children if type(child) is Record]
    typed = all(type(label) is Name and label.name in DTYPES for label in labels)
    if not typed or len(labels) > MOST_STAGES:
        refuse("a stage of the discriminator has no type")
    return [label.name for label in labels if type(label) is Name]


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

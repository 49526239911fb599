"""What a weights file or folder is: no network is built, nothing is run."""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from solverbench import published_discriminator, tensorfile
from solverbench.backbones import edm_files, ldm_files, sd_files
from solverbench.errors import SolverBenchError
from solverbench.sources import open_source, refuse
from solverbench.torchfile import Stored, module_tensors, read_pickle
from solverbench.unpickle import Record

Facts = dict[str, Any]
PERSISTENT = b"_reconstruct_persistent_obj"  # a name that pickles of EDM begin with
START = 1 << 16  # bytes in which it stands
OURS = "solverbench-"
BUFFERS = ("resample_filter", "freqs", "u")  # tensors that are no parameters
KNOWN = (
    "EDM and R3GAN pickles, LDM checkpoints, folders of diffusers, safetensors files, and "
    "statistics of the FID"
)


def form_of(path: Path) -> str:
    """The layout that a safetensors file names, such as ``solverbench-tableau-1``; else empty."""
    if not path.is_file() or _start(path)[:1] in (b"\x80", b"P"):
        return ""
    try:
        with open_source(path) as source:
            return tensorfile.inspect(source)[1].get("format", "")
    except SolverBenchError:
        return ""


def weights_facts(path: Path) -> Facts:
    """What a weights file or folder is.

    Args:
        path: the file or folder.

    Returns:
        Facts for people, in order: kind, architecture, parameters, types, hashes.

    Raises:
        SolverBenchError: for what is missing, damaged, or of no known kind; one line.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise SolverBenchError(f"{path} is missing")
    start = _start(path)
    if start[:4] == b"PK\x03\x04":
        found = _archive(path)
    elif start[:1] == b"\x80":
        found = _edm(path) if PERSISTENT in start else _r3gan(path)
    elif start[8:9] == b"{":
        found = _safetensors(path)
    else:
        raise SolverBenchError(f"{path} is none of: {KNOWN}")
    return found if "sha256" in found else found | {"sha256": sha256_of_file(path)}


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START)


def sha256_of_file(path: Path) -> str:
    """The checksum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _edm(path: Path) -> Facts:
    with open_source(path) as source:
        facts, tensors = edm_files.inspect(source)
    return _edm_facts("EDM network, published pickle", facts._asdict(), tensors)


def _edm_facts(kind: str, facts: Facts, tensors: dict[str, Stored]) -> Facts:
    keywords = dict(facts["keywords"])
    design = {"DhariwalUNet": "ADM"}.get(keywords.get("model_type", ""))
    design = design or ("NCSN++" if keywords.get("encoder_type") == "residual" else "DDPM++")
    highest = "no bound" if facts["sigma_max"] is None else f"{facts['sigma_max']:g}"
    learned = [value for key, value in tensors.items() if key.split(".")[-1] not in BUFFERS]
    return {
        "kind": kind,
        "architecture": f"{facts['kind']}, {keywords.get('model_type', '')} ({design})",
        "keywords": keywords,
        "parameters": _count(learned),
        "sigma range": f"{facts['sigma_min']:g} to {highest}",
        "dtype": facts["dtype"],
        "source text sha256": facts["source_sha256"],
    }


def _r3gan(path: Path) -> Facts:
    tensors, stages = _r3gan_parts(path)
    weights = {k: v for k, v in tensors.items() if not k.endswith("Resampler.Kernel")}
    classes = weights.get("EmbeddingLayer.weight")
    channels, side = weights["ExtractionLayer.Layer.weight"].shape[1], 2 << len(stages)
    return {
        "kind": "R3GAN discriminator, published pickle",
        "architecture": f"{len(stages)} stages, {channels} x {side} x {side} pixels",
        "classes": classes.shape[1] if classes else 0,
        "parameters": _count(weights.values()),
        "stages compute in": ", ".join(stages),
        "dtype": _dtypes(weights.values()),
    }


def _r3gan_parts(path: Path) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Tensors of a published discriminator, and the type that each stage computes in.

    Raises:
        SolverBenchError: for a file that is none.
    """
    with open_source(path) as source:
        tree = read_pickle(source, published_discriminator.NAMES)
        network = tree.get("D") if isinstance(tree, dict) else None
        if type(network) is not Record:
            refuse(f"it is a pickle without a network under 'ema' or 'D'; known are {KNOWN}")
        prefix = published_discriminator.PREFIX
        found = {k.removeprefix(prefix): v for k, v in module_tensors(network).items()}
        if "ExtractionLayer.Layer.weight" not in found:
            refuse("its network under 'D' is no R3GAN discriminator")
        return found, _stage_types(network)


def _stage_types(network: Record) -> tuple[str, ...]:
    """Names of the types, in order; their modules have been checked."""
    inner = network.state["_modules"].get("Model", network)
    stages = inner.state["_modules"].get("MainLayers") if type(inner) is Record else None
    children = stages.state["_modules"].values() if type(stages) is Record else ()
    return tuple(str(getattr(c.state.get("DataType"), "name", "unknown")) for c in children)


def _archive(path: Path) -> Facts:
    """A zip file: of ``torch.save`` or of numpy."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SolverBenchError(f"{path} is a damaged zip file: {error}") from error
    if any(name.endswith("data.pkl") for name in names):
        return _ldm(path)
    if {"mu.npy", "sigma.npy"} <= set(names):
        listed = ", ".join(sorted(name.removesuffix(".npy") for name in names))
        return {"kind": "statistics of the FID", "arrays": listed}
    raise SolverBenchError(f"{path} is a zip file of another kind; known are {KNOWN}")


def _ldm(path: Path) -> Facts:
    """A CompVis checkpoint, or a folder of diffusers without text encoder."""
    facts = ldm_files.inspect_ldm(path)
    layout = facts.layout
    return {
        "kind": "LDM, folder of diffusers" if path.is_dir() else "LDM checkpoint",
        "architecture": facts.architecture,
        "classes": facts.num_classes,
        "weights": facts.weights,
        "parameters": facts.num_parameters,
        "parameters of the first stage": facts.num_stage_parameters,
        "sigma range": _sigmas(layout.beta_first, layout.beta_last),
        "dtype": facts.dtype,
        "sha256": facts.file_sha256,
    }


def _folder(path: Path) -> Facts:
    """A folder of diffusers."""
    if not (path / "text_encoder").is_dir():
        return _ldm(path)
    facts = sd_files.inspect_sd(path)
    return {
        "kind": "Stable Diffusion, folder of diffusers",
        "architecture": f"latents {facts.state_shape}, images {facts.image_shape}, text "
        f"{facts.context}, predicts {facts.output}",
        "parameters": facts.parameters,
        "sigma range": _sigmas(facts.beta_first, facts.beta_last),
        "dtype": facts.dtypes,
        "sha256": sd_files.identity(sd_files.open_sd(path), None),
    }


def _sigmas(first: float, last: float) -> str:
    """Noise over signal at both ends of 1000 betas, spaced evenly in their roots."""
    logs = np.log1p(-(np.linspace(first**0.5, last**0.5, 1000) ** 2))
    low, high = (float(np.sqrt(np.expm1(-total))) for total in (logs[0], logs.sum()))
    return f"{low:g} to {high:g}"


def _safetensors(path: Path) -> Facts:
    with open_source(path) as source:
        tensors, head = tensorfile.inspect(source)
        form = head.get("format", "")
        said = _said(head) if form.startswith(OURS) else {}
    if form == ldm_files.FORMAT:
        found = _ldm(path)
        return found | {
            "kind": f"LDM, {form}",
            "published file sha256": found["sha256"],
            "sha256": sha256_of_file(path),
        }
    if form == edm_files.FORMAT:
        return _edm_facts(f"EDM network, {form}", said, tensors) | {
            "published file sha256": said.get("file_sha256", "")
        }
    first = ", ".join(f"{k} {list(v.shape)}" for k, v in islice(tensors.items(), 3))
    known = form.startswith(OURS)
    return {
        "kind": form if known else "safetensors file of another project",
        **said,
        "tensors": f"{len(tensors)}: {first}{', ...' if len(tensors) > 3 else ''}",
        "parameters": _count(tensors.values()),
        "dtype": _dtypes(tensors.values()),
    }


def _said(head: dict[str, str]) -> Facts:
    """The facts in the header of one of our files."""
    try:
        found = json.loads(head.get("facts", ""))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        refuse("it has no facts in its header")
    return found


def _count(tensors: Iterable[Stored]) -> int:
    return sum(math.prod(value.shape) for value in tensors)


def _dtypes(tensors: Iterable[Stored]) -> str:
    return ", ".join(sorted({str(v.storage.dtype).removeprefix("torch.") for v in tensors}))

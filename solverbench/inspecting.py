"""What a weights file or folder is: no network is built, nothing is run."""

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from solverbench import published_discriminator, tensorfile
from solverbench.backbones import edm_files, ldm_files, sd_files
from solverbench.errors import SolverBenchError, shown
from solverbench.files import sha256_of
from solverbench.sources import expect_file, open_source, refuse
from solverbench.torchfile import ZIPPED, Stored, zip_parts

Facts = dict[str, Any]
PERSISTENT = b"_reconstruct_persistent_obj"  # a name that pickles of EDM begin with
START = 1 << 16  # bytes in which it stands
MOST = 100  # entries of a foreign list that are shown
OURS = "solverbench-"
BUFFERS = ("resample_filter", "freqs", "u")  # tensors that are no parameters
KNOWN = (
    "EDM and R3GAN pickles, LDM checkpoints, folders of diffusers, safetensors files, and "
    "statistics of the FID"
)


def form_of(path: Path) -> str:
    """The layout that a safetensors file names, such as ``solverbench-tableau-1``; else empty."""
    try:
        expect_file(path, "safetensors")
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
    return {str(_plain(key)): _plain(value) for key, value in _facts(path).items()}


def _facts(path: Path) -> Facts:
    try:
        if path.is_dir():
            return _folder(path)
    except OSError:
        pass  # said by what follows
    expect_file(path, "a file of weights")
    with open_source(path) as source:
        start = source.at(0, min(START, source.size))
    if start[:4] == ZIPPED:
        found = _archive(path)
    elif start[:1] == b"\x80":
        found = _edm(path) if PERSISTENT in start else _r3gan(path)
    elif start[8:9] == b"{":
        found = _safetensors(path)
    else:
        raise SolverBenchError(f"{path} is none of: {KNOWN}")
    return found if "sha256" in found else found | {"sha256": sha256_of(path)}


def _plain(value: Any) -> Any:
    """A foreign value for a terminal or a page: escaped and cut, whatever it holds."""
    if isinstance(value, dict):
        first = islice(value.items(), MOST)
        return {str(_plain(key)): _plain(inner) for key, inner in first}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value[:MOST]]
    whole = isinstance(value, int) and abs(value) < 1 << 63
    finite = isinstance(value, float) and math.isfinite(value)
    return value if value is None or whole or finite else shown(str(value))


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
    with open_source(path) as source:
        tensors, stages = published_discriminator.inspect(source)
    weights = {k: v for k, v in tensors.items() if not k.endswith("Resampler.Kernel")}
    classes, channels = weights.get("EmbeddingLayer.weight"), _channels(weights)
    side = 2 << len(stages)
    return {
        "kind": "R3GAN discriminator, published pickle",
        "architecture": f"{len(stages)} stages, {channels} x {side} x {side} pixels",
        "classes": (classes.shape or (0,))[-1] if classes else 0,
        "parameters": _count(weights.values()),
        "stages compute in": ", ".join(stages),
        "dtype": _dtypes(weights.values()),
    }


def _channels(weights: dict[str, Stored]) -> int:
    first = weights.get("ExtractionLayer.Layer.weight")
    if first is None or len(first.shape) != 4:
        refuse("its network under 'D' is no R3GAN discriminator")
    return first.shape[1]


def _archive(path: Path) -> Facts:
    """A zip file: of ``torch.save`` or of numpy."""
    with open_source(path) as source:
        names = [part.filename for part in zip_parts(source)]
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
        said = tensorfile.facts_in(head) if form.startswith(OURS) else {}
        if form == edm_files.FORMAT:
            facts = edm_files.facts_of(said)
            told = _edm_facts(f"EDM network, {form}", facts._asdict(), tensors)
            return told | {"published file sha256": facts.file_sha256}
    if form == ldm_files.FORMAT:
        found = _ldm(path)
        return found | {
            "kind": f"LDM, {form}",
            "published file sha256": found["sha256"],
            "sha256": sha256_of(path),
        }
    first = ", ".join(f"{k} {list(v.shape)}" for k, v in islice(tensors.items(), 3))
    kind = form if form.startswith(OURS) else "safetensors file of another project"
    return (
        {"kind": kind}
        | said
        | {
            "kind": kind,  # whatever is said
            "tensors": f"{len(tensors)}: {first}{', ...' if len(tensors) > 3 else ''}",
            "parameters": _count(tensors.values()),
            "dtype": _dtypes(tensors.values()),
            "sha256": sha256_of(path),
        }
    )


def _count(tensors: Iterable[Stored]) -> int:
    return sum(math.prod(value.shape) for value in tensors)


def _dtypes(tensors: Iterable[Stored]) -> str:
    return ", ".join(sorted({str(v.storage.dtype).removeprefix("torch.") for v in tensors}))

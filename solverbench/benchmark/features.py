"""From decoded images to what metrics read, block by block."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from solverbench import registry, weights
from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import check_options
from solverbench.benchmark.meter import stopwatch
from solverbench.benchmark.rows import Rows
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.images import Extractor, Features, Reference, moments, quantise_adm, quantise_edm
from solverbench.transfer import check_space

QUANTISE = {"edm": quantise_edm, "adm": quantise_adm}
IN_MEMORY = 2**28  # bytes of decoded images of a set, of which a cell may hold two; more: a file


def ready(name: str, **options: Any) -> Extractor:
    """A registered extractor that can run here.

    Args:
        name: as registered.
        **options: of its constructor.

    Raises:
        SolverBenchError: for an unknown name, unknown options, or where it cannot run here.
        MissingWeightsError: where published files are missing.
    """
    kind = registry.extractors.get(name)
    check_options("extractor", name, kind, options, skip=1)
    try:
        extractor: Extractor = kind(**options)
    except (TypeError, ValueError) as error:
        raise SolverBenchError(f"extractor {name}: {error}") from error
    usable, why = extractor.available()
    if usable:
        return extractor
    missing = [file for file in extractor.needs if not weights.present(file)]
    raise MissingWeightsError(missing) if missing else SolverBenchError(f"extractor {name}: {why}")


def features_of(
    extractor: Extractor,
    images: Tensor,
    quantisation: Literal["edm", "adm"] = "edm",
) -> Features:
    """Quantise decoded images and extract their features.

    Args:
        extractor: whose features.
        images: (M, C, H, W) in [-1, 1].
        quantisation: to uint8, by the convention of the backbone: ``edm`` or ``adm``.

    Returns:
        Features with the images beside them, as float32 on the host.

    Raises:
        ValueError: for NaN or infinite images.
    """
    images = images.detach().float().cpu()
    rows = extracted(extractor, [quantised(images, quantisation)])
    return Features(embedding=rows["embedding"], texture=rows["texture"], images=images)


def quantised(images: Tensor, quantisation: Literal["edm", "adm"]) -> Tensor:
    """8-bit images of decoded ones (B, C, H, W).

    Raises:
        ValueError: for NaN or infinite images.
    """
    if not images.isfinite().all():
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        raise ValueError(f"{bad} of {len(images)} images hold NaN or infinity.")
    return QUANTISE[quantisation](images)


def extracted(extractor: Extractor, parts: Iterable[Tensor]) -> dict[str, Tensor]:
    """Features of 8-bit images that arrive in parts of any size; the result is that of one part.

    Args:
        extractor: sees blocks of its own size, or all images at once where it names none.
        parts: (B, C, H, W), uint8, one after another.

    Raises:
        ValueError: for no images, or such as the extractor does not read.
    """
    found = [extractor.extract(block) for block in regrouped(parts, extractor.traits.batch)]
    if not found:
        raise ValueError("there are no images.")
    return {key: torch.cat([rows[key] for rows in found]) for key in found[0]}


def regrouped(parts: Iterable[Tensor], size: int | None) -> Iterator[Tensor]:
    """The same rows in blocks of ``size``, the last one shorter; in one block for None."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        if size is None or sum(map(len, held)) < size:
            continue
        *whole, rest = torch.split(torch.cat(held), size)
        if len(rest) == size:
            whole, rest = [*whole, rest], rest[:0]
        yield from whole
        held = [rest.clone()] if len(rest) else []
    if held:
        yield torch.cat(held)


def keeps_images(metrics: Sequence[str]) -> bool:
    """Whether one of these metric plugins reads decoded images."""
    return any(registry.metrics.get(name).reads_images for name in metrics)


def sampled_features(
    backbone: Backbone,
    extractor: Extractor,
    states: Rows,
    batch: int,
    scratch: Path | None,
) -> tuple[Features, float]:
    """Decode final states batch by batch and extract; images are kept only where they are asked.

    Args:
        backbone: decodes.
        extractor: whose features.
        states: (M, ...) on the host.
        batch: states decoded at once.
        scratch: a file for decoded images beyond 256 MiB, to be removed by the caller; None where
            no metric reads images, and then none are kept.

    Returns:
        Features, and the median seconds of decoding an image.

    Raises:
        ValueError: for NaN or infinite images.
    """
    seconds, kept = list[float](), list[Tensor]()

    def parts() -> Iterator[Tensor]:
        done = 0
        for start in range(0, len(states), batch):
            part = states[start : start + batch]
            with torch.no_grad(), stopwatch(backbone.device, seconds):
                decoded = backbone.decode(part.to(backbone.device)).cpu()
            images = decoded.float()
            if scratch is not None:
                if not kept:
                    kept.append(_room(len(states), images.shape[1:], scratch))
                kept[0][done : done + len(images)] = images
            done += len(images)
            yield quantised(images, backbone.quantisation)

    rows = extracted(extractor, parts())
    sizes = [min(batch, len(states) - start) for start in range(0, len(states), batch)]
    each = sorted(s / n for s, n in zip(seconds, sizes, strict=True))
    images = kept[0] if kept else None
    features = Features(embedding=rows["embedding"], texture=rows["texture"], images=images)
    return features, each[len(each) // 2]


def _room(num: int, shape: torch.Size, scratch: Path) -> Tensor:
    """An empty float32 tensor (num, *shape), mapped to a file where memory might not hold it."""
    size = num * shape.numel()
    if size * 4 <= IN_MEMORY:
        return torch.empty(num, *shape)
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        check_space(scratch.parent, size * 4)
        mapped = torch.from_file(str(scratch), shared=True, size=size, dtype=torch.float32)
    except (OSError, RuntimeError) as error:
        raise SolverBenchError(
            f"{scratch} cannot hold {size * 4 / 1e9:.0f} GB of decoded images: {error}"
        ) from error
    return mapped.view(num, *shape)


def reference_of(features: Features, about: str) -> Reference:
    """A reference made of another set of samples, for example the teacher's.

    Args:
        features: of all images, with these images where paired metrics are wanted.
        about: one line: which images.

    Raises:
        ValueError: for fewer than two rows, or NaN or infinity among them.
    """
    embedding = features.embedding.detach().cpu().contiguous()
    return Reference(
        embedding=moments(embedding),
        texture=moments(features.texture),
        features=features,
        sha256=hashlib.sha256(embedding.view(torch.uint8).numpy().tobytes()).hexdigest(),
        about=about,
    )

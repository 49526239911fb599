"""From decoded images to what metrics read."""

import hashlib
from typing import Literal

import torch
from torch import Tensor

from solverbench.images import Extractor, Features, Reference, moments, quantise_adm, quantise_edm

QUANTISE = {"edm": quantise_edm, "adm": quantise_adm}


def features_of(
    extractor: Extractor,
    images: Tensor,
    quantisation: Literal["edm", "adm"] = "edm",
) -> Features:
    """Quantise decoded images and extract their features.

    Args:
        extractor: whose features.
        images: (M, C, H, W) in [-1, 1]; all images of a set at once, so that nothing depends on
            the batches they were sampled in.
        quantisation: to uint8, by the convention of the backbone: ``edm`` or ``adm``.

    Returns:
        Features with the images beside them, as float32 on the host.

    Raises:
        ValueError: for NaN or infinite images.
    """
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        raise ValueError(f"{bad} of {len(images)} images hold NaN or infinity.")
    rows = extractor.extract(QUANTISE[quantisation](images))
    return Features(embedding=rows["embedding"], texture=rows["texture"], images=images)


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

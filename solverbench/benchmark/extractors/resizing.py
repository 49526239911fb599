"""How images reach a network's size; each rule gives other features."""

import torch
from torch import Tensor


def tf1_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize as TensorFlow 1 did, without a half-pixel shift and without antialiasing.

    Args:
        images: (B, C, H, W), float32.
        height: of the result.
        width: likewise.

    Returns:
        (B, C, height, width). Output row i reads the source at i H / height, between the pixels
        below and above that, the last one repeated.

    Source: Inception graph of 2015-12-05; specification of the metrics, section 2.
    """
    return _along(_along(images, 3, width), 2, height)


def _along(images: Tensor, axis: int, side: int) -> Tensor:
    """Resize one axis; widths first, as TensorFlow does, so that roundings agree."""
    size = images.shape[axis]
    place = torch.arange(side, dtype=torch.float32, device=images.device) * (size / side)
    low = place.long()
    high = (low + 1).clamp_max(size - 1)
    share = place - low
    shape = [1] * images.ndim
    shape[axis] = side
    below, above = images.index_select(axis, low), images.index_select(axis, high)
    return below + (above - below) * share.view(shape)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (B, 3, H, W) in 0 .. 1, less the mean of each channel, over its deviation."""
    shift, scale = (images.new_tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (images - shift) / scale

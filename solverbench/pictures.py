"""Images as PNG files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from solverbench.files import write_bytes
from solverbench.images import quantise_edm

LABEL_WIDTH = 190  # pixels beside a labelled row, at least
FONT_SIZE = 13


def tile(images: Tensor, columns: int, scale: int, gap: int = 2) -> Image.Image:
    """Images in rows, enlarged without smoothing.

    Args:
        images: (M, C, H, W) in [-1, 1], C 1 or 3.
        columns: images a row.
        scale: pixels a pixel.
        gap: white pixels between images.
    """
    pixels = quantise_edm(images.expand(-1, 3, -1, -1)).permute(0, 2, 3, 1)
    pixels = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    num, height, width, _ = pixels.shape
    rows = -(-num // columns)
    canvas = torch.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas.numpy())


def labelled(rows: Sequence[tuple[str, Tensor]], scale: int) -> Image.Image:
    """One row of images a label.

    Args:
        rows: label and images (M, C, H, W), the same M for all.
        scale: pixels a pixel.
    """
    tiles = [tile(images, len(images), scale) for _, images in rows]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    longest = max(pen.textlength(label, font_size=FONT_SIZE) for label, _ in rows)
    beside = max(LABEL_WIDTH, math.ceil(longest) + 12)
    height = sum(t.height for t in tiles) + 6 * (len(tiles) - 1)
    canvas = Image.new("RGB", (beside + tiles[0].width, height), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for (label, _), picture in zip(rows, tiles, strict=True):
        draw.text((4, top + picture.height // 2 - 6), label, fill="black", font_size=FONT_SIZE)
        canvas.paste(picture, (beside, top))
        top += picture.height + 6
    return canvas


def write_png(path: Path, picture: Image.Image) -> None:
    """Write aside and rename."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_bytes(path, buffer.getvalue())

"""Images for training the embedded backbones; nothing here is needed to run solvers."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from solverbench.errors import SolverBenchError

CIFAR_CLASSES = (  # in label order
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: (M, C, H, W), uint8.
        labels: (M,), int64.
        held_out: the same pair for images that training never sees.
        source: one line that says where they come from.
        sha256: hash of the pixels.
    """

    pixels: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor]
    source: str
    sha256: str


def digits(path: Path | None = None) -> Images:
    """The 1,797 digits (8 x 8, grey levels 0 .. 16 scaled to 0 .. 255) of scikit-learn."""
    if path is not None:
        raise SolverBenchError("digits come with scikit-learn; leave --data away.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = "digits need scikit-learn: pip install 'solverbench[train]'"
        raise SolverBenchError(message) from None
    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = order[:360]
    source = "optical digits of E. Alpaydin and C. Kaynak (UCI), as in scikit-learn; all 1,797"
    return Images(pixels, labels, (pixels[held], labels[held]), source, digest(pixels))


def cifar16(path: Path | None = None) -> Images:
    """CIFAR-10 at 16 x 16 by a box filter over 2 x 2 pixels.

    Args:
        path: a tar (any compression) or a folder that holds ``train/<class>/*`` and
            ``test/<class>/*`` images of 32 x 32 pixels.

    Raises:
        SolverBenchError: without a path, or where it holds no such images.
    """
    if path is None:
        raise SolverBenchError(
            "cifar16 needs images: --data, a tar or folder with train/<class>/* and test/<class>/*"
        )
    parts: dict[str, list[tuple[str, int, np.ndarray]]] = {"train": [], "test": []}
    for name, data in members(path):
        pieces = Path(name).parts[-3:]
        if len(pieces) == 3 and pieces[0] in parts and pieces[1] in CIFAR_CLASSES:
            image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            parts[pieces[0]].append((name, CIFAR_CLASSES.index(pieces[1]), image))
    if not parts["train"] or not parts["test"]:
        raise SolverBenchError(f"{path} holds no train/<class>/* and test/<class>/* images.")
    train, test = (halved(sorted(parts[name], key=lambda row: row[0])) for name in parts)
    source = f"CIFAR-10 (A. Krizhevsky, 2009), 2 x 2 box filter, {len(train[1])} training images"
    return Images(*train, test, source, digest(train[0]))


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of a folder or tar.

    Raises:
        SolverBenchError: where there is neither.
    """
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield str(file), file.read_bytes()
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()
    else:
        raise SolverBenchError(f"{path} is neither a folder nor a tar of images.")


def halved(rows: list[tuple[str, int, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Stack (name, label, 32 x 32 image) rows into (M, 3, 16, 16) uint8 and labels (M,)."""
    full = torch.from_numpy(np.stack([image for _, _, image in rows])).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.avg_pool2d(full.float(), 2).round().to(torch.uint8)
    return pixels, torch.tensor([label for _, label, _ in rows])


def digest(pixels: Tensor) -> str:
    """SHA-256 of uint8 pixels."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()

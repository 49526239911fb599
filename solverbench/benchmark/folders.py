"""Folders of images, in and out: lossless 8-bit files of one size, named by their seeds."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from solverbench.errors import SolverBenchError

LOSSLESS = {".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
LOSSY = {".jpg", ".jpeg", ".webp", ".avif", ".jp2"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"}  # a name may hide what a file is
LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
LARGEST = 2**26  # pixels; files of a few bytes can claim billions
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DIGITS = 6  # of a seed in a file's name
BLOCK = 64  # images read at once


@dataclass
class ImageFolder:
    """Images of a folder and of those inside it, in the order of their paths.

    Attributes:
        folder: where they are.
        paths: of the images.
        channels: wanted; a grey image is repeated for 3.
        lossy: whether lossy files may be read.
        notes: what a reader of a result must know of the choice.
        digests: SHA-256 of each file, as it was when ``parts`` read it.
        size: height and width of all, known once one was read.
    """

    folder: Path
    paths: Sequence[Path]
    channels: int = 3
    lossy: bool = False
    notes: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None

    def parts(self) -> Iterator[Tensor]:
        """The images, (B, C, H, W) uint8, some at a time.

        Raises:
            SolverBenchError: for what is no image, is lossy, has transparency, more than 8 bits,
                several frames, colours where grey is wanted, or another size than the first.
        """
        self.digests.clear()
        for start in range(0, len(self.paths), BLOCK):
            yield torch.stack([self._read(path) for path in self.paths[start : start + BLOCK]])

    def first(self) -> Tensor:
        """The first image (C, H, W); ``size`` is known from then on."""
        return self._read(self.paths[0])

    def _read(self, path: Path) -> Tensor:
        data = b""
        try:
            data = path.read_bytes()
            with _quiet(), Image.open(io.BytesIO(data)) as image:
                _refuse(image, path, self.lossy)
                pixels = np.asarray(image)
        except UnidentifiedImageError as error:
            why = "its format is not known" if data else "it is empty"
            raise SolverBenchError(f"{path} cannot be read as an image: {why}") from error
        except BOMBS as error:
            raise _large(path) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise SolverBenchError(f"{path} cannot be read as an image: {error}") from error
        self.digests.append(hashlib.sha256(data).hexdigest())
        size = pixels.shape[0], pixels.shape[1]
        self.size = self.size or size
        if size != self.size:
            shown, first = (f"{s[1]} x {s[0]}" for s in (size, self.size))
            raise SolverBenchError(
                f"{path} has {shown} pixels and {self.paths[0].name} has {first}; a set has one "
                "size, and nothing is resized before the extractor"
            )
        return self._coloured(torch.from_numpy(np.array(pixels)), path)

    def _coloured(self, pixels: Tensor, path: Path) -> Tensor:
        if pixels.ndim == 2:
            return pixels.expand(self.channels, -1, -1)
        if self.channels != 3:
            raise SolverBenchError(f"{path} is in colour; this extractor reads grey images")
        return pixels.movedim(-1, 0)


def open_folder(
    folder: Path, *, channels: int = 3, lossy: bool = False, num: int | None = None, seed: int = 0
) -> ImageFolder:
    """Find the images of a folder.

    Args:
        folder: searched with the folders inside it; hidden files are left out.
        channels: that an extractor reads.
        lossy: whether lossy files may be used.
        num: images wanted; of more, a random subset is taken.
        seed: of the subset.

    Raises:
        SolverBenchError: where there is no such folder, it has no images or fewer than asked, or
            lossy ones.
    """
    if not folder.is_dir():
        raise SolverBenchError(f"{folder} is no folder")
    inside = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = sorted(p for p in inside if not any(part.startswith(".") for part in p.parts))
    known = LOSSLESS | LOSSY
    paths = [folder / p for p in files if p.suffix.lower() in known]
    if not paths:
        raise SolverBenchError(f"{folder} holds no images; {', '.join(sorted(LOSSLESS))} are read")
    refused = [p for p in paths if p.suffix.lower() in LOSSY]
    if refused and not lossy:
        raise _lossy(refused[0], refused[0].suffix)
    found = ImageFolder(folder, paths, channels, lossy)
    if refused:
        found.notes.append(f"{len(refused)} of {len(paths)} images are lossy, which changes values")
    if len(files) > len(paths):
        found.notes.append(f"{len(files) - len(paths)} files in {folder} are no images: left out")
    return found if num is None else _subset(found, num, seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow; one of size is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _refuse(image: Image.Image, path: Path, lossy: bool) -> None:
    """Look at what the header says, before anything is decoded."""
    kind, mode = image.format or "", image.mode
    packed = str(image.info.get("compression", "")) if kind == "TIFF" else ""
    if (kind in LOSSY_FORMATS or packed in LOSSY_TIFF) and not lossy:
        raise _lossy(path, f"{packed} in TIFF" if packed else kind)
    if image.width * image.height > LARGEST:
        raise _large(path)
    if getattr(image, "n_frames", 1) > 1:
        raise SolverBenchError(f"{path} holds more than one frame; save each as an image")
    why = "" if mode in ("RGB", "L") else f"has the pixel format {mode}"
    if "A" in mode or "transparency" in image.info:
        why = "has an alpha channel" if "A" in mode else "has a transparent colour"
    if why:
        raise SolverBenchError(f"{path} {why}; save it as 8-bit RGB or 8-bit grey")


def _large(path: Path) -> SolverBenchError:
    return SolverBenchError(f"{path} has more than {LARGEST:,} pixels, the most that are read")


def _lossy(path: Path, kind: str) -> SolverBenchError:
    return SolverBenchError(
        f"{path} is lossy ({kind.lstrip('.').upper()}), which changes every metric; save PNG, or "
        "allow it with --lossy"
    )


def _subset(found: ImageFolder, num: int, seed: int) -> ImageFolder:
    total = len(found.paths)
    if num > total:
        raise SolverBenchError(f"{found.folder} holds {total} images, fewer than the {num} asked")
    if num < total:
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:num]
        found.paths = [found.paths[i] for i in sorted(chosen.tolist())]
        found.notes.append(f"{num} of {total} images, a random subset of seed {seed}")
    return found


def file_digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file.

    Raises:
        SolverBenchError: where one cannot be read.
    """
    found = []
    for path in paths:
        try:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise SolverBenchError(f"cannot read {path}: {error.strerror}") from error
    return found


def write_folder(folder: Path, images: Tensor, seeds: Sequence[int]) -> list[Path]:
    """Write 8-bit images as PNG, each named by its seed, for example ``050000.png``.

    Args:
        folder: made where it is missing.
        images: (M, 1 or 3, H, W), uint8, quantised by the convention of the backbone.
        seeds: one an image, all different.

    Returns:
        The files.

    Raises:
        SolverBenchError: where a file cannot be written.
        ValueError: for other images, or where numbers of images and seeds differ.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 (M, 1 or 3, H, W); got {images.dtype} {tuple(images.shape)}."
        )
    if len(seeds) != len(images) or len(set(seeds)) != len(seeds):
        raise ValueError(f"{len(images)} images need as many different seeds; got {len(seeds)}.")
    paths = [folder / f"{seed:0{DIGITS}d}.png" for seed in seeds]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, images.cpu(), strict=True):
            pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
            aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            Image.fromarray(pixels.contiguous().numpy()).save(aside, "PNG")
            os.replace(aside, path)  # not flushed: tens of thousands would take minutes
    except OSError as error:
        raise SolverBenchError(f"cannot write in {folder}: {error.strerror}") from error
    return paths

"""Folders of images: what is written is read, and what cannot be measured is refused."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from solverbench.benchmark.folders import open_folder, write_folder
from solverbench.errors import SolverBenchError


def colours(num: int = 3, height: int = 4, width: int = 6, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, channels, height, width), generator=rng).to(torch.uint8)


def read(folder: Path, **options: object) -> Tensor:
    return torch.cat(list(open_folder(folder, **options).parts()))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_in_the_order_of_seeds(channels: int, tmp_path: Path) -> None:
    images = colours(channels=channels)
    paths = write_folder(tmp_path, images, [50_001, 7, 100])
    assert [path.name for path in paths] == ["050001.png", "000007.png", "000100.png"]
    assert torch.equal(read(tmp_path, channels=channels), images[[1, 2, 0]])


def test_grey_images_are_repeated_for_an_extractor_of_colours(tmp_path: Path) -> None:
    images = colours(channels=1)
    write_folder(tmp_path, images, range(3))
    assert torch.equal(read(tmp_path, channels=3), images.expand(-1, 3, -1, -1))


def test_folders_inside_and_many_blocks_keep_their_order(tmp_path: Path) -> None:
    images = colours(130, 2, 2)
    write_folder(tmp_path / "b", images[:70], range(70))
    write_folder(tmp_path / "a", images[70:], range(60))
    found = open_folder(tmp_path)
    parts = list(found.parts())
    assert [len(part) for part in parts] == [64, 64, 2]
    assert torch.equal(torch.cat(parts), torch.cat([images[70:], images[:70]]))
    assert found.size == (2, 2)
    assert len(set(found.digests)) == 130


def test_a_subset_is_seeded_sorted_and_said(tmp_path: Path) -> None:
    write_folder(tmp_path, colours(20), range(20))
    once, again = (open_folder(tmp_path, num=5, seed=3) for _ in range(2))
    other = open_folder(tmp_path, num=5, seed=4)
    assert once.paths == again.paths == sorted(once.paths)
    assert once.paths != other.paths
    assert once.notes == ["5 of 20 images, a random subset of seed 3"]
    assert open_folder(tmp_path, num=20).notes == []


def test_other_files_are_left_out_and_said(tmp_path: Path) -> None:
    write_folder(tmp_path, colours(), range(3))
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    found = open_folder(tmp_path)
    assert len(found.paths) == 3
    assert found.notes == [f"1 files in {tmp_path} are no images: left out"]


def save(folder: Path, array: np.ndarray, name: str, kind: str | None = None) -> None:
    Image.fromarray(array).save(folder / name, kind)


def claim(folder: Path, side: int) -> None:
    """A PNG of a few bytes whose header says that it has ``side`` pixels a side."""
    data = bytearray((folder / "000000.png").read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "9.png").write_bytes(data)


GREY = np.full((4, 6), 100, np.uint8)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a JPEG": (lambda f: save(f, GREY, "9.jpg"), r"9.jpg is lossy \(JPG\).*save PNG.*--lossy"),
    "a JPEG with another name": (
        lambda f: save(f, GREY, "9.png", "JPEG"),
        r"9.png is lossy \(JPEG\)",
    ),
    "another size": (
        lambda f: save(f, GREY.T.copy(), "9.png"),
        "9.png has 4 x 6 pixels and 000000.png has 6 x 4",
    ),
    "transparency": (
        lambda f: save(f, np.zeros((4, 6, 4), np.uint8), "9.png"),
        "9.png has an alpha channel; save it as 8-bit RGB",
    ),
    "16 bits": (
        lambda f: save(f, GREY.astype(np.uint16), "9.png"),
        "9.png has the pixel format I;16",
    ),
    "a JPEG inside TIFF": (
        lambda f: Image.fromarray(GREY).save(f / "9.tif", compression="jpeg"),
        r"9.tif is lossy \(JPEG IN TIFF\)",
    ),
    "a transparent colour": (
        lambda f: Image.fromarray(GREY).save(f / "9.png", transparency=100),
        "9.png has a transparent colour",
    ),
    "an animation": (
        lambda f: Image.fromarray(GREY).save(
            f / "9.png", save_all=True, append_images=[Image.fromarray(GREY + 1)]
        ),
        "9.png holds more than one frame",
    ),
    "an image of billions of pixels": (
        lambda f: claim(f, 60_000),
        "9.png has more than 67,108,864",
    ),
    "one of which Pillow warns": (lambda f: claim(f, 9_600), "9.png has more than 67,108,864"),
    "one below that": (lambda f: claim(f, 8_200), "9.png has more than 67,108,864"),
    "an empty file": (lambda f: (f / "9.png").touch(), "read as an image: it is empty$"),
    "an unknown format": (lambda f: (f / "9.png").write_text("text"), "format is not known$"),
    "no image": (lambda f: (f / "9.png").write_text("text"), "9.png cannot be read as an image"),
    "half an image": (
        lambda f: (f / "9.png").write_bytes((f / "000000.png").read_bytes()[:60]),
        "9.png cannot be read as an image",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_file_stops_the_measurement_in_one_line(what: str, tmp_path: Path) -> None:
    write_folder(tmp_path, colours(), range(3))
    make, message = BAD[what]
    make(tmp_path)
    with pytest.raises(SolverBenchError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_lossy_images_are_read_where_they_are_allowed_and_said(tmp_path: Path) -> None:
    write_folder(tmp_path, colours(), range(3))
    save(tmp_path, GREY, "9.jpg")
    found = open_folder(tmp_path, lossy=True)
    assert len(torch.cat(list(found.parts()))) == 4
    assert found.notes == ["1 of 4 images are lossy, which changes values"]


def test_colours_are_refused_where_grey_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, colours(), range(3))
    with pytest.raises(SolverBenchError, match="is in colour; this extractor reads grey"):
        read(tmp_path, channels=1)


@pytest.mark.parametrize(("num", "what"), [(None, "holds no images"), (2, "holds no images")])
def test_an_empty_folder_is_refused(num: int | None, what: str, tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match=what):
        open_folder(tmp_path, num=num)
    with pytest.raises(SolverBenchError, match="is no folder"):
        open_folder(tmp_path / "nowhere")


def test_more_images_than_there_are_cannot_be_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path, colours(), range(3))
    with pytest.raises(SolverBenchError, match="holds 3 images, fewer than the 4 asked"):
        open_folder(tmp_path, num=4)


@pytest.mark.parametrize("images", [colours().float(), colours(channels=2), colours()[0]])
def test_only_8_bit_images_are_written(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        write_folder(tmp_path, images, range(len(images)))


@pytest.mark.parametrize("seeds", [[0, 1], [0, 1, 1]])
def test_every_image_has_a_seed_of_its_own(seeds: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many different seeds"):
        write_folder(tmp_path, colours(), seeds)


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SolverBenchError, match="cannot write in"):
        write_folder(tmp_path / "file", colours(), range(3))

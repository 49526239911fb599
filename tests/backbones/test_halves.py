"""The halves of the digits: their images, their small training, and what lacks without it."""

from pathlib import Path

import pytest
import torch

from solverbench.backbones import halves
from solverbench.backbones.extractor import EmbeddedExtractor
from solverbench.backbones.halves import DigitsHigh, DigitsLow
from solverbench.backbones.recipes import DENOISERS, HALVES, images_for, train_backbone
from solverbench.errors import SolverBenchError


def test_the_halves_share_no_class_and_leave_no_image_out() -> None:
    whole, low, high = (images_for(name, None) for name in ("digits", *HALVES))
    assert set(low.labels.tolist()) == {0, 1, 2, 3, 4}
    assert set(high.labels.tolist()) == {5, 6, 7, 8, 9}
    assert len(low.labels) + len(high.labels) == len(whole.labels)
    assert len({one.sha256 for one in (whole, low, high)}) == 3
    assert len(low.held_out[1]) + len(high.held_out[1]) == len(whole.held_out[1])
    assert "901 digits 0 to 4" in low.source


def test_both_have_the_recipe_of_all_digits() -> None:
    assert all(DENOISERS[name] == DENOISERS["digits"] for name in HALVES)


def test_a_small_training_gives_a_backbone_and_its_own_reference(tmp_path: Path) -> None:
    images = images_for("digits-low", None)
    facts = train_backbone("digits-low", images, tmp_path, 256, lambda *words: None)
    assert facts["data_sha256"] == images.sha256
    backbone = DigitsLow(weights=str(tmp_path / "digits-low.safetensors"))
    assert (backbone.name, backbone.extractor) == ("digits-low", "digits-low")
    noise = backbone.noise(range(2))
    assert backbone.raw(noise, torch.tensor(0.5, dtype=torch.float64), None).shape == noise.shape
    extractor, shipped = EmbeddedExtractor("digits-low", tmp_path), EmbeddedExtractor("digits")
    pixels = images.pixels[:4]
    ours, theirs = extractor.extract(pixels), shipped.extract(pixels)
    assert torch.equal(ours["embedding"], theirs["embedding"])
    assert extractor.reference().embedding.num == 901
    assert extractor.reference().sha256 != shipped.reference().sha256


def test_without_weights_a_line_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(halves, "FOLDER", tmp_path)
    with pytest.raises(SolverBenchError, match="solverbench backbone train digits-high"):
        DigitsHigh()


def test_weights_that_the_command_left_here_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "backbones" / "digits-low"
    made.mkdir(parents=True)
    (made / "digits-low.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert halves.place_of("digits-low").resolve() == made
    assert halves.place_of("digits-high") == halves.FOLDER

"""The commands that measure what no solver of ours made, on the embedded digits."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from solverbench.backbones.extractor import DigitsExtractor
from solverbench.benchmark import feature_cache
from solverbench.benchmark import metrics as m
from solverbench.benchmark.evaluate import _label
from solverbench.benchmark.folders import write_folder
from solverbench.benchmark.measuring import METRICS
from solverbench.benchmark.sides import Choice
from tests.measuring import call, noise, plain, rows


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feature_cache.FOLDER, str(tmp_path / "features"))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_folder(tmp_path / "ours", noise(80, 0), range(80))
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    write_folder(tmp_path / "theirs", noise(90, 1), range(90))
    return tmp_path / "theirs"


def test_two_folders_are_measured_as_their_features_are(ours: Path, theirs: Path) -> None:
    done = call(
        "evaluate", ours, "--reference", theirs, "--extractor", "digits", "--json", "--unequal"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    values = {entry["metric"]: entry for entry in found["metrics"]}
    sides = {"generated": rows(80, 0), "reference": rows(90, 1)}
    shares = m.precision_recall(**sides, k=5, convention="prdc")
    filled = m.density_coverage(**sides)
    expected = {
        "fd": m.frechet_distance(**sides),
        "precision": shares.precision,
        "recall": shares.recall,
        "density": filled.density,
        "coverage": filled.coverage,
        "kid": m.kernel_distance(**sides),
        "mind": m.mind(**sides),
    }
    assert list(values) == list(expected)
    for name, measured in expected.items():
        entry = values[name]
        assert entry["value"] == pytest.approx(measured.value, rel=1e-9, abs=1e-12)
        assert (entry["num_generated"], entry["num_reference"], entry["dim"]) == (80, 90, 64)
    assert values["coverage"]["ceiling"] == filled.ceiling
    assert (values["recall"]["k"], values["recall"]["convention"]) == (5, "prdc")
    assert values["fd"]["label"] == "FD[digits]"
    assert found["extractor"]["weights_sha256"] == DigitsExtractor().sha256
    assert found["extractor"]["batch"] == 256
    assert found["generated"]["image_size"] == [8, 8]


def test_a_made_reference_gives_the_same_values_with_and_without_features(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    bare, full = tmp_path / "bare.npz", tmp_path / "full.npz"
    assert call("reference", theirs, "--extractor", "digits", "--out", bare).exit_code == 0
    done = call("reference", theirs, "--extractor", "digits", "--out", full, "--features")
    assert done.exit_code == 0
    assert "90 images" in done.output
    with np.load(bare) as file:
        assert set(file.files) >= {"mu", "sigma", "num_images", "extractor", "format_version"}
        np.testing.assert_allclose(file["mu"], rows(90, 1).double().mean(dim=0), atol=1e-12)
        np.testing.assert_allclose(file["sigma"], rows(90, 1).double().T.cov(), atol=1e-12)
    texts = [call("evaluate", ours, "--reference", where).output for where in (bare, full)]
    values = [text.splitlines()[0] for text in texts]
    assert values[0].split()[:2] == values[1].split()[:2]
    assert "absent: precision, recall, density, coverage, kid, mind: needs feature rows" in texts[0]
    assert "absent" not in texts[1]


def test_the_reference_of_an_extractor_needs_no_other_name(ours: Path) -> None:
    done = call("evaluate", ours, "--reference", "digits", "--metrics", "fd,recall")
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.output.splitlines()[:2]]
    assert names == ["FD[digits]", "recall[digits]"]
    assert "E. Alpaydin" in done.output


def test_a_standard_error_stands_beside_the_value(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 6, generator=rng), torch.randn(300, 6, generator=rng) + 0.3
    save_file({"features": x}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "y.npz", features=y.numpy())
    done = call(
        *("evaluate", tmp_path / "x.safetensors", "--reference", tmp_path / "y.npz"),
        *("--metrics", ",".join(METRICS)),
    )
    assert done.exit_code == 0, done.output
    measured = m.frechet_distance(generated=x, reference=y)
    assert measured.se is not None
    first = done.output.splitlines()[0].split()
    assert first == ["FD[unknown]", f"{measured.value:.4g}", "+-", f"{measured.se:.2g}"]
    assert f"ceiling {m.coverage_ceiling(200, 200, 5):.3f}" in done.output


def test_k_and_the_convention_are_what_was_asked(ours: Path, theirs: Path) -> None:
    options = (
        "--metrics",
        "recall",
        "--k",
        "3",
        "--convention",
        "kynkaanniemi",
        "--json",
        "--unequal",
    )
    done = call("evaluate", ours, "--reference", theirs, "--extractor", "digits", *options)
    (found,) = json.loads(done.stdout)["metrics"]
    sides = {"generated": rows(80, 0), "reference": rows(90, 1)}
    assert found["value"] == m.precision_recall(**sides).recall.value
    assert (found["k"], found["convention"]) == (3, "kynkaanniemi")


def test_features_of_a_folder_are_kept_and_a_changed_image_is_seen(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", ours, "--reference", "digits", "--metrics", "fd", "--num", "60", "--json")

    def value() -> float:
        done = call(*words)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["generated"]["image_size"] == [8, 8]
        return float(found["metrics"][0]["value"])

    once, kept = value(), list(feature_cache.folder().rglob("*.safetensors"))
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr(DigitsExtractor, "extract", lambda self, pixels: 1 / 0)
        assert value() == once
    kept[0].write_bytes(kept[0].read_bytes()[:-8] + b"damaged!")
    assert value() == once
    write_folder(ours, noise(80, 5), range(80))
    assert value() != once
    assert len(list(feature_cache.folder().rglob("*.safetensors"))) == 2


def test_lossy_images_do_not_come_in_through_the_cache(ours: Path) -> None:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(ours / "9.png", "JPEG")
    words = ("evaluate", ours, "--reference", "digits", "--metrics", "fd")
    assert call(*words, "--lossy").exit_code == 0
    assert "9.png is lossy (JPEG)" in call(*words).output


def test_no_cache_keeps_nothing(ours: Path) -> None:
    words = ("evaluate", ours, "--reference", "digits", "--metrics", "fd", "--no-cache")
    assert call(*words).exit_code == 0
    assert not feature_cache.folder().exists()


def nan_features(place: Path) -> Path:
    values = np.ones((20, 64), np.float32)
    values[3, 3] = np.nan
    np.savez(place / "nan.npz", features=values)
    return place / "nan.npz"


def complex_rows(place: Path) -> Path:
    np.savez(place / "complex.npz", features=rows(40, 2).numpy() + 1j)
    return place / "complex.npz"


def huge(scale: float) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        np.savez(place / "huge.npz", features=rows(40, 2).double().numpy() * scale)
        return place / "huge.npz"

    return make


def few_dimensions(place: Path) -> Path:
    np.savez(place / "few.npz", mu=np.zeros(3), sigma=np.eye(3))
    return place / "few.npz"


def other_extractor(place: Path) -> Path:
    m.write_statistics(place / "other.npz", m.Moments(torch.zeros(64), torch.eye(64), 9, "cifar16"))
    return place / "other.npz"


def nothing(place: Path) -> Path:
    (place / "empty").mkdir()
    return place / "empty"


def text(place: Path) -> Path:
    (place / "notes.txt").write_text("text")
    return place / "notes.txt"


def empty_tensors(place: Path) -> Path:
    save_file({"weight": torch.zeros(2, 2)}, place / "weights.safetensors")
    return place / "weights.safetensors"


def jpeg(place: Path) -> Path:
    (place / "lossy").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "lossy" / "0.jpg")
    return place / "lossy"


def mixed(place: Path) -> Path:
    write_folder(place / "mixed", noise(3, 0), range(3))
    write_folder(place / "mixed", noise(1, 0)[:, :, :4], [9])
    return place / "mixed"


def one(place: Path) -> Path:
    write_folder(place / "one", noise(1, 0), [0])
    return place / "one"


def wide(place: Path) -> Path:
    write_folder(place / "wide", torch.zeros(3, 1, 8, 9, dtype=torch.uint8), range(3))
    return place / "wide"


Maker = Callable[[Path], Path]
BAD: list[tuple[Maker | str, Maker | str, tuple[str, ...], str]] = [
    (jpeg, "digits", (), r"0.jpg is lossy"),
    (mixed, "digits", (), "000009.png has 8 x 4 pixels and 000000.png has 8 x 8"),
    (nothing, "digits", (), "holds no images"),
    (one, "digits", (), "one holds one image; at least two are needed"),
    (wide, "digits", (), r"images of 9 x 8 pixels: extractor digits .* \(B, 1, 8, 8\)$"),
    (plain, few_dimensions, (), "64 dimensions, reference features 3"),
    (nan_features, "digits", (), "1 of 20 feature rows hold NaN or infinity"),
    ("digits", nan_features, (), "there is no file or folder digits"),
    (plain, "digits", ("--k", "40"), "k=40 nearest neighbours need more than 40 rows; got 40"),
    (plain, "digit", (), "digit is neither a file, nor a folder, nor an extractor"),
    (mixed, plain, (), "name the extractor with --extractor"),
    (mixed, plain, ("--extractor", "digist"), "did you mean 'digits'"),
    (
        mixed,
        plain,
        ("--extractor", "digits", "--extractor-option", "a=1"),
        "digits has no option 'a'",
    ),
    (text, "digits", (), "is no folder of images and no file of features"),
    (empty_tensors, "digits", (), "holds no tensor named features or embedding"),
    (few_dimensions, "digits", (), "3 dimensions, reference features 64"),
    (few_dimensions, few_dimensions, ("--metrics", "kid"), "kid needs feature rows"),
    (plain, "digits", ("--metrics", "fid"), "unknown metric 'fid'; did you mean"),
    (plain, "digits", ("--max-memory", "0.00001"), "are too few for"),
    *((plain, "digits", ("--max-memory", n), "is no number of GiB") for n in ("nan", "inf", "-1")),
    (plain, "digits", ("--seed", "-" + "9" * 30), "--seed.*is not in the range"),
    (plain, "digits", ("--blocks", "2"), "--blocks.*is not in the range"),
    (plain, "digits", ("--blocks", "30"), "blocks of two rows; got 30 blocks of 1"),
    (few_dimensions, few_dimensions, ("--blocks", "3"), "--blocks needs feature rows"),
    (plain, "digits", ("--metrics", "fd-half-split"), "halves of more than 64 rows.* got 20"),
    (complex_rows, "digits", (), "complex.npz holds no usable features.*must be real numbers"),
    (huge(1e30), "digits", ("--metrics", "mind"), "mind: its value is (inf|nan)"),
    (huge(1e200), "digits", ("--metrics", "kid"), "kid: its value is nan"),
    (huge(1e40), "digits", ("--metrics", "kid"), "kid: its std is inf"),
    (huge(1e200), "digits", ("--metrics", "fd"), "fd(: its value| has no finite value)"),
    (huge(1e200), "digits", ("--metrics", "recall"), "features reach .*overflow"),
]


@pytest.mark.parametrize(("generated", "against", "options", "message"), BAD)
def test_what_cannot_be_measured_is_said_in_one_line(
    generated: Maker | str,
    against: Maker | str,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    sides = [side if isinstance(side, str) else side(tmp_path) for side in (generated, against)]
    done = call("evaluate", sides[0], "--reference", sides[1], *options)
    assert done.exit_code == 2, done.output
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("error: ")
    assert re.search(message, done.output), done.output


def test_features_of_two_extractors_are_not_compared(ours: Path, tmp_path: Path) -> None:
    words = ("--reference", other_extractor(tmp_path), "--extractor", "digits")
    done = call("evaluate", ours, *words)
    assert done.exit_code == 2
    assert "features of digits cannot be compared with those of cifar16" in done.output


def test_a_reference_is_an_npz_file(ours: Path, tmp_path: Path) -> None:
    done = call("reference", ours, "--extractor", "digits", "--out", tmp_path / "a.json")
    assert (done.exit_code, "must end in .npz" in done.output) == (2, True)
    done = call("reference", ours, "--out", tmp_path / "a.npz")
    assert (done.exit_code, "--extractor" in done.output) == (2, True)


def test_names_of_the_paper_are_for_their_networks_alone() -> None:
    assert [_label(name, "inception-edm") for name in ("fd", "kid")] == ["FID", "KID"]
    assert _label("fd", "digits") == "FD[digits]"
    assert _label("cmmd", "clip-vit-l-14-336") == "CMMD"
    assert Choice().metrics == ()


def test_features_that_name_no_extractor_have_no_name_of_the_paper(tmp_path: Path) -> None:
    """Random rows beside statistics of Inception are no FID, unless the user vouches for them."""
    known = m.Moments(torch.zeros(64), torch.eye(64), 9, "inception-edm")
    m.write_statistics(tmp_path / "known.npz", known)
    for sides in (
        (plain(tmp_path), tmp_path / "known.npz"),
        (tmp_path / "known.npz", plain(tmp_path)),
    ):
        words = ("evaluate", sides[0], "--reference", sides[1], "--metrics", "fd")
        done = call(*words)
        assert done.exit_code == 0, done.output
        assert done.output.startswith("FD[unknown] ")
        assert "plain.npz names no extractor: labels say unknown" in done.output
    vouched = call(*words, "--extractor", "inception-edm")
    assert vouched.output.startswith("FID ")
    assert "taken as inception-edm, as --extractor says" in vouched.output
    assert "unknown extractor 'inception'" in call(*words, "--extractor", "inception").output


def test_the_name_of_an_extractor_wins_over_a_folder_of_that_name(
    ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(theirs.parent)
    theirs.rename("digits")
    named = call("evaluate", "ours", "--reference", "digits", "--metrics", "fd")
    assert named.exit_code == 0, named.output
    assert "E. Alpaydin" in named.output
    assert "digits is the extractor; write ./digits for the folder or file" in named.output
    words = ("--reference", "./digits", "--extractor", "digits", "--metrics", "fd")
    assert "90 images of digits" in call("evaluate", "ours", *words).output
    assert "write ./NAME" in " ".join(call("evaluate", "--help").output.split())

"""Published networks on made weights; the numbers come from the libraries that read the files."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import solverbench
from solverbench import weights
from solverbench.benchmark.extractors.base import PublishedExtractor
from solverbench.benchmark.extractors.data_sets import InceptionCifar10
from solverbench.benchmark.extractors.inception import InceptionCompat, InceptionEDM
from solverbench.benchmark.extractors.resizing import tf1_bilinear
from solverbench.benchmark.extractors.vgg import VGG16FC2
from solverbench.benchmark.metrics.balls import full_float32
from solverbench.benchmark.metrics.frechet import FD, FDTexture
from solverbench.benchmark.metrics.statistics import write_statistics
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.images import Extractor, Features, Moments, moments
from tests.benchmark.extractors.waves import inception_state, pictures, vgg_state

DATA = Path(__file__).parents[2] / "data"
GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
CLOSE = 1e-5  # sums of some thousand float32 products, in another order on another processor
KEYS = ("input", "size", "rows", "cols", "output_at", "output_mean")
EVERY = 128  # features that the golden file keeps one of


class Colours(torch.nn.Module):
    """Stands for the TorchScript file: the same call, the same shape of the result."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        assert return_features
        return images.float().mean(dim=(2, 3)).repeat(1, 683)[:, :2048]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and the published file is one
        torch.jit.save(torch.jit.script(Colours()), str(tmp_path / "script.pt"))
    return tmp_path / "script.pt"


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory) -> InceptionCompat:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state(), path)
    return InceptionCompat(weights=str(path), device="cpu", batch=1)


@pytest.fixture(scope="session")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> VGG16FC2:
    path = tmp_path_factory.mktemp("vgg") / "weights.pth"
    torch.save(vgg_state(), path)
    return VGG16FC2(weights=str(path), device="cpu", batch=1)


@pytest.mark.parametrize("name", ["inception", "vgg16"])
def test_features_are_those_of_torch_fidelity(
    name: str, inception: InceptionCompat, vgg: VGG16FC2
) -> None:
    golden = json.loads((DATA / "metrics-extractors.json").read_text())
    extractor: Extractor = inception if name == "inception" else vgg
    found = extractor.extract(pictures())["embedding"]
    expected = torch.tensor(golden[name])
    assert expected.std() > 0.01
    assert (expected[0] - expected[1]).abs().max() > 0.001
    torch.testing.assert_close(found[:, ::EVERY], expected, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(
        found.mean(dim=1), torch.tensor(golden[f"{name}_mean"]), rtol=1e-5, atol=0
    )


def test_features_equal_torch_fidelity_s_own_where_it_is_installed(
    inception: InceptionCompat,
) -> None:
    theirs = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3",
        reason="torch-fidelity is compared where it is installed, and is never needed",
    ).FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception.path))
    expected = theirs(pictures())[0]
    found = inception.extract(pictures())["embedding"]
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", ["up32", "up8x5", "down", "same"])
def test_tensorflow_s_resize_meets_the_golden_pixels(case: str) -> None:
    """2e-3 grey levels: coordinates are float32."""
    with np.load(Path(solverbench.__file__).parent / "goldens/metrics/resize_tf1.npz") as file:
        golden = {key: torch.from_numpy(file[f"{case}.{key}"]) for key in KEYS}
    height, width = (int(n) for n in golden["size"].expand(2))
    found = tf1_bilinear(golden["input"].float(), height, width)
    part = found[:, :, golden["rows"]][:, :, :, golden["cols"]]
    torch.testing.assert_close(part, golden["output_at"], rtol=0, atol=2e-3)
    assert float(found.double().mean()) == pytest.approx(float(golden["output_mean"]), abs=2e-3)


def test_a_row_depends_neither_on_its_neighbours_nor_on_their_number(script: Path) -> None:
    extractor = InceptionEDM(weights=str(script), device="cpu", batch=4)
    images = torch.arange(7 * 3 * 5 * 5).view(7, 3, 5, 5).to(torch.uint8)
    whole = extractor.extract(images)["embedding"]
    assert whole.shape == (7, 2048)
    assert torch.equal(extractor.extract(images[5:])["embedding"], whole[5:])
    torch.testing.assert_close(whole[:, :3], images.float().mean(dim=(2, 3)))


def test_nothing_may_lower_the_precision_inside_and_settings_are_put_back() -> None:
    kinds = (torch.backends.cudnn.conv, torch.backends.mkldnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    with full_float32("conv"):
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before


def test_autocast_around_changes_nothing(inception: InceptionCompat) -> None:
    images = pictures()[:1]
    expected = inception.extract(images)["embedding"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inception.extract(images)["embedding"], expected)


@pytest.mark.parametrize("kind", [InceptionEDM, InceptionCompat, VGG16FC2])
def test_without_its_file_an_extractor_says_how_to_get_it(kind: type[PublishedExtractor]) -> None:
    usable, why = kind(device="cpu").available()
    assert not usable
    assert f"solverbench weights fetch {kind.weights_file}" in why
    usable, why = kind(weights="/nowhere/file", device="cpu").available()
    assert not usable
    assert "/nowhere/file is not there" in why


def test_without_its_library_an_extractor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(InceptionCompat, "packages", ("no_such_library",))
    assert InceptionCompat(device="cpu").available() == (
        False,
        "needs no_such_library: pip install 'solverbench[metrics]'",
    )


@pytest.mark.parametrize(("kind", "what"), [(InceptionCompat, "no Conv2d"), (VGG16FC2, "VGG16")])
def test_weights_of_another_network_are_refused(
    kind: type[PublishedExtractor], what: str, tmp_path: Path
) -> None:
    torch.save({"layer.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(SolverBenchError, match=what):
        kind(weights=str(tmp_path / "other.pth"), device="cpu").extract(pictures())


@pytest.mark.parametrize("kind", [InceptionEDM, InceptionCompat, VGG16FC2])
def test_a_torn_file_is_refused_in_one_line(kind: type[PublishedExtractor], tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(SolverBenchError, match="torn is no") as caught:
        kind(weights=str(tmp_path / "torn"), device="cpu").extract(pictures())
    assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(SolverBenchError, match="is no file of weights"):
        InceptionCompat(weights=str(tmp_path / "trap.pth"), device="cpu").extract(pictures())
    assert not (tmp_path / "sprung").exists()


def test_other_images_than_colour_bytes_are_refused(script: Path) -> None:
    extractor = InceptionEDM(weights=str(script), device="cpu")
    for images in (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4)):
        with pytest.raises(ValueError, match="reads uint8 images of shape"):
            extractor.extract(images)


def test_a_script_with_other_features_is_refused(tmp_path: Path, script: Path) -> None:
    extractor = VGG16FC2(weights=str(script), device="cpu", batch=2)
    extractor.__dict__["network"] = lambda images: images.mean(dim=(2, 3))
    with pytest.raises(SolverBenchError, match=r"shape \(2, 3\), not \(B, 4096\)"):
        extractor.extract(pictures())


def test_a_data_set_s_extractor_brings_published_moments_and_no_rows(
    place: Path, script: Path
) -> None:
    extractor = InceptionCifar10(weights=str(script), device="cpu")
    assert extractor.needs == ("fid-cifar10-32x32",)
    with pytest.raises(MissingWeightsError, match="fid-cifar10-32x32"):
        extractor.reference()
    rows = torch.randn(50, 2048, generator=torch.Generator().manual_seed(0))
    write_statistics(weights.path("fid-cifar10-32x32"), moments(rows))
    assert extractor.available() == (True, "")
    found = extractor.reference()
    assert torch.equal(found.embedding.mu, moments(rows).mu)
    assert found.features is None
    assert found.sha256 == extractor.reference().sha256
    assert FD().label(extractor.name) == "FID"
    with pytest.raises(ValueError, match="keeps none"):
        FDTexture().compute(generated=Features(rows, rows[:, :0]), reference=found)


def test_statistics_of_another_dimension_are_refused(place: Path, script: Path) -> None:
    few = Moments(torch.zeros(3).double(), torch.eye(3).double(), 10)
    write_statistics(weights.path("fid-cifar10-32x32"), few)
    with pytest.raises(SolverBenchError, match="3 dimensions, not 2048"):
        InceptionCifar10(weights=str(script), device="cpu").reference()


def test_only_the_network_of_2015_may_be_called_fid(script: Path) -> None:
    assert FD().label("inception-v3-compat") == "FID"
    assert FD().label(VGG16FC2.name) == "FD[vgg16-fc2]"
    assert FD().label("inception-of-torchvision") == "FD[inception-of-torchvision]"


def test_the_hash_is_that_of_the_file(script: Path) -> None:
    extractor = InceptionEDM(weights=str(script), device="cpu")
    assert extractor.sha256 == hashlib.sha256(script.read_bytes()).hexdigest()

"""The paper's models by name: what they are made of, and that other files are refused."""

import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from solverbench import registry, weights
from solverbench.backbones import published
from solverbench.backbones.edm_preconditioning import build
from solverbench.backbones.latent import LatentBackbone
from solverbench.benchmark.load import check_device, load_backbone
from solverbench.benchmark.spec import Named
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.inventory import files_of

DATA = Path(__file__).parents[1] / "data" / "backbones"
PIXELS = (published.EDMCifar10, published.EDMFFHQ, published.EDMAFHQv2)
LATENTS = (published.LDMBedroom, published.LDMImageNet, published.StableDiffusion15)
WIDTHS = {"edm-cifar10": [2, 2, 2], "edm-ffhq": [1, 2, 2, 2]}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOLVERBENCH_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edm") / "tiny.pkl"
    path.write_bytes(lzma.decompress((DATA / "edm-tiny-uncond-ddpmpp.pkl.xz").read_bytes()))
    return path


def network_of(kind: type[published.EDMCifar10]) -> nn.Module:
    """The published architecture without numbers."""
    with torch.device("meta"):
        made = build(
            "EDMPrecond",
            {
                "img_resolution": kind.price.state[-1],
                "img_channels": 3,
                "label_dim": 0,
                "model_type": "SongUNet",
                "model_channels": 128,
                "channel_mult": WIDTHS[kind.name],
                "augment_dim": 9,
            },
        )
    return made.to("meta").eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [*PIXELS, *LATENTS])
def test_every_file_that_a_model_names_is_in_the_catalogue(kind: Any) -> None:
    items = weights.catalogue()
    assert [items[name].kind for name in kind.needs] == ["backbone"]
    kinds = {items[name].kind for name in kind.measured_by}
    assert kinds - {"captions"} == {"extractor", "statistics"}
    if kind in PIXELS:
        assert items[kind.judge].kind == "discriminator"


@pytest.mark.parametrize("kind", [*PIXELS, *LATENTS])
def test_without_its_file_a_model_names_it(kind: Any, empty: Path) -> None:
    with pytest.raises(MissingWeightsError) as caught:
        kind()
    assert caught.value.names == kind.needs
    assert not empty.exists()


@pytest.mark.parametrize("kind", PIXELS)
def test_the_file_of_another_network_is_refused_in_one_line(
    kind: type[published.EDMCifar10], tiny: Path
) -> None:
    with pytest.raises(SolverBenchError, match=r"img_resolution 16, the published one") as caught:
        kind(weights=str(tiny))
    assert kind.needs[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def small(monkeypatch: pytest.MonkeyPatch, kind: Any, **keywords: object) -> None:
    """Let a class stand for the tiny network."""
    monkeypatch.setattr(kind, "keywords", keywords)
    monkeypatch.setattr(kind, "price", kind.price._replace(parameters=TINY))


TINY = 112_211  # parameters of the tiny EDM fixture


@pytest.mark.parametrize("kind", PIXELS)
def test_students_stop_where_the_papers_do(
    kind: type[published.EDMCifar10], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, kind)
    ends = {"edm-cifar10": 1e-3, "edm-ffhq": 1e-4, "edm-afhqv2": 1e-4}  # gs-gas.md, section 9
    made = kind(weights=str(tiny))
    assert made.schedule.t_min == ends[kind.name]
    assert made.quantisation == "edm"
    assert kind(weights=str(tiny), t_min=5e-4).schedule.t_min == 5e-4
    assert kind(weights=str(tiny), frame="ve").schedule.t_min == 0.002


def test_a_network_of_another_size_or_dropout_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, published.EDMFFHQ)
    monkeypatch.setattr(
        published.EDMFFHQ, "price", published.EDMFFHQ.price._replace(parameters=TINY + 1)
    )
    with pytest.raises(SolverBenchError, match=f"{TINY:,} parameters, the published one"):
        published.EDMFFHQ(weights=str(tiny))
    small(monkeypatch, published.EDMFFHQ, dropout=0.99)
    with pytest.raises(SolverBenchError, match=r"dropout .*, the published one 0\.99"):
        published.EDMFFHQ(weights=str(tiny))


@pytest.mark.parametrize("kind", [published.EDMCifar10, published.EDMFFHQ])
def test_the_price_of_a_pixel_model_is_that_of_its_architecture(
    kind: type[published.EDMCifar10],
) -> None:
    network = network_of(kind)
    held = {p.untyped_storage()._cdata for p in [*network.parameters(), *network.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in held:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = torch.zeros(1, *kind.price.state, device="meta", requires_grad=True)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        network(x, torch.ones((), device="meta"), None)
    assert sum(p.numel() for p in network.parameters()) == kind.price.parameters
    # printed with three digits
    assert counter.get_total_flops() / 1e9 == pytest.approx(kind.price.gflop, rel=5e-3)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 1e6
    assert found == pytest.approx(kind.price.kept_mb, rel=0.05)  # attention differs by backend


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the general classes are asked for; they then hold a network of one number."""
    found: dict[str, Any] = {}

    def init(self: LatentBackbone, **options: Any) -> None:
        found.update(options)
        self.network = nn.Linear(1, 1, bias=False)

    for name in ("LDM", "StableDiffusion"):
        monkeypatch.setattr(getattr(published, name), "__init__", init)
    for kind in LATENTS:
        monkeypatch.setattr(kind, "price", kind.price._replace(parameters=1))
    return found


@pytest.mark.parametrize(("kind", "guidance"), list(zip(LATENTS, (None, 2.0, 7.5), strict=True)))
def test_latent_models_are_loaded_with_the_guidance_of_the_paper(
    kind: Any, guidance: float | None, seen: dict[str, Any], empty: Path
) -> None:
    place = weights.path(kind.needs[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    made = kind(dtype="bfloat16")
    assert seen["weights"] == str(place)
    assert seen.get("guidance") == guidance
    assert seen["t_min"] == 1e-3
    assert seen["dtype"] == "bfloat16"
    assert made.quantisation == "adm"


def test_stable_diffusion_takes_the_captions_where_they_are(
    seen: dict[str, Any], empty: Path
) -> None:
    published.StableDiffusion15(weights="folder")
    assert seen["prompts"] is None
    captions = weights.path("coco-captions")
    captions.parent.mkdir(parents=True)
    captions.write_text("a cat\n")
    published.StableDiffusion15(weights="folder")
    assert seen["prompts"] == str(captions)
    published.StableDiffusion15(weights="folder", prompts="mine.txt")
    assert seen["prompts"] == "mine.txt"


def test_a_latent_network_of_another_size_is_refused(
    seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        published.LDMBedroom, "price", published.LDMBedroom.price._replace(parameters=2)
    )
    with pytest.raises(SolverBenchError, match="1 parameters, the published one 2"):
        published.LDMBedroom(weights="model.ckpt")


def test_a_fault_of_ours_keeps_its_traceback_and_a_bad_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(error: Exception) -> type:
        class Broken:
            def __init__(self, *, device: str = "cpu") -> None:
                raise error

        return Broken

    for error in (TypeError("'int' object is not subscriptable"), RuntimeError(), AssertionError()):
        kind = raising(error)
        monkeypatch.setattr(registry.backbones, "get", lambda name, kind=kind: kind)
        with pytest.raises(type(error)):
            load_backbone("broken")
    monkeypatch.setattr(registry.backbones, "get", lambda name: raising(ValueError("one\ntwo")))
    with pytest.raises(SolverBenchError, match=r"^backbone broken: one$"):
        load_backbone("broken")


def test_a_device_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for device in ("cuda", "cuda:7", "meta", "zz", ""):
        with pytest.raises(SolverBenchError, match=r"is not available here; allowed: cpu$"):
            load_backbone("edm", weights=str(tiny), device=device)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        check_device("backbone edm", device)
    with pytest.raises(SolverBenchError, match=r"allowed: cpu, cuda, cuda:0, cuda:1$"):
        check_device("backbone edm", "cuda:2")


@pytest.mark.parametrize("kind", [*PIXELS, *LATENTS])
def test_an_empty_place_is_not_taken_for_none(kind: Any, empty: Path) -> None:
    assert files_of(Named(name=kind.name, options={"weights": ""})) == ()
    assert files_of(Named(name=kind.name)) == kind.needs
    with pytest.raises(SolverBenchError, match="option weights is empty"):
        load_backbone(kind.name, weights="")
    with pytest.raises(SolverBenchError) as caught:
        kind(weights="")
    assert not isinstance(caught.value, MissingWeightsError)

"""The paper's six models by name: their files, their ends of time, how they are measured.

Of each class, ``needs`` names the files of the backbone itself, ``measured_by`` those that a run on
the paper's data set needs as well, ``judge`` the published discriminator that its GAS starts from:
all as ``solverbench weights list`` shows them. ``packages`` are optional ones.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Unpack

from solverbench import weights as published_files
from solverbench.backbones.base import Backbone
from solverbench.backbones.edm import EDM
from solverbench.backbones.latent import NetworkOptions
from solverbench.backbones.ldm import LDM
from solverbench.backbones.sd import StableDiffusion
from solverbench.errors import SolverBenchError

INCEPTION = "inception-2015-12-05-compat"
DIFFUSERS = ("diffusers", "transformers")


class Price(NamedTuple):
    """What a model takes, counted on its architecture; see ``benchmark/estimate.py``.

    Attributes:
        parameters: of the network.
        gflop: billions of operations of a row's forward pass, two a multiply-add.
        kept_mb: activations that a row keeps for the backward pass in float32, fused attention.
        rows: network rows a sample and call; guidance makes it 2.
        decode_gflop: of decoding one latent; 0 for pixels.
        decode_mb: activations kept by that.
        state: shape that solvers integrate, (C, H, W).
        image: shape of a decoded image, (C, H, W).
    """

    parameters: int
    gflop: float
    kept_mb: float
    state: tuple[int, int, int]
    image: tuple[int, int, int]
    rows: int = 1
    decode_gflop: float = 0.0
    decode_mb: float = 0.0


def _place(weights: str | None, file: str) -> str:
    """The place of a published file, where the user names none."""
    return str(published_files.require(file)[0]) if weights is None else weights


def _counted(backbone: Backbone, price: Price, file: str, general: str) -> None:
    """Refuse a network of another size."""
    found = sum(p.numel() for p in backbone.network.parameters())
    if found != price.parameters:
        raise _other(backbone.name, f"{found:,} parameters", f"{price.parameters:,}", file, general)


def _other(name: str, found: str, wanted: str, file: str, general: str) -> SolverBenchError:
    return SolverBenchError(
        f"{name}: the network of this file has {found}, the published one {wanted}; give {file}, "
        f"or use backbone {general}, which takes any"
    )


class _PublishedEDM(EDM):
    """A published EDM network; another network's file is refused.

    Attributes:
        t_end: where the paper's students stop.
        keywords: of the published network's constructor, which the file must agree with.
    """

    needs: ClassVar[tuple[str, ...]]
    measured_by: ClassVar[tuple[str, ...]]
    judge: ClassVar[str]
    price: ClassVar[Price]
    t_end: ClassVar[float]
    keywords: ClassVar[Mapping[str, object]]

    def __init__(
        self,
        *,
        weights: str | None = None,
        frame: Literal["vp", "ve"] = "vp",
        t_min: float | None = None,
        channels_last: bool = False,
        device: str = "cpu",
    ) -> None:
        """Read the published file.

        Args:
            weights: its place; where ``solverbench weights`` keeps it by default.
            frame: ``vp`` as the paper runs it, or ``ve``, in which t is sigma.
            t_min: where students stop; the paper's value by default.
            channels_last: memory format of the network.
            device: where it lives.
        """
        super().__init__(
            weights=_place(weights, self.needs[0]),
            frame=frame,
            t_min=self.t_end if t_min is None and frame == "vp" else t_min,
            channels_last=channels_last,
            device=device,
        )
        found = {"kind": self.facts.kind, **self.facts.keywords}
        for key, wanted in {"kind": "EDMPrecond", **self.keywords}.items():
            if found.get(key, wanted) != wanted:
                raise _other(self.name, f"{key} {found[key]}", str(wanted), self.needs[0], "edm")
        _counted(self, self.price, self.needs[0], "edm")


class EDMCifar10(_PublishedEDM):
    """CIFAR10 at 32 pixels, unconditional DDPM++ of EDM: the paper's pixel model of table 2a."""

    name = "edm-cifar10"
    needs = ("edm-cifar10-32x32-uncond-vp",)
    extractor = "inception-cifar10"
    measured_by = (INCEPTION, "fid-cifar10-32x32")
    judge = "r3gan-cifar10"
    price = Price(55_733_891, 42.4, 121, (3, 32, 32), (3, 32, 32))
    t_end = 1e-3
    keywords: ClassVar[Mapping[str, object]] = {
        "img_resolution": 32,
        "label_dim": 0,
        "dropout": 0.13,
    }


class EDMFFHQ(_PublishedEDM):
    """FFHQ at 64 pixels, unconditional DDPM++ of EDM."""

    name = "edm-ffhq"
    needs = ("edm-ffhq-64x64-uncond-vp",)
    extractor = "inception-ffhq"
    measured_by = (INCEPTION, "fid-ffhq-64x64")
    judge = "r3gan-ffhq-64x64"
    price = Price(61_805_571, 83.7, 308, (3, 64, 64), (3, 64, 64))
    t_end = 1e-4
    keywords: ClassVar[Mapping[str, object]] = {
        "img_resolution": 64,
        "label_dim": 0,
        "dropout": 0.05,
    }


class EDMAFHQv2(_PublishedEDM):
    """AFHQv2 at 64 pixels, unconditional DDPM++ of EDM; only its dropout tells it from FFHQ's."""

    name = "edm-afhqv2"
    needs = ("edm-afhqv2-64x64-uncond-vp",)
    extractor = "inception-afhqv2"
    measured_by = (INCEPTION, "fid-afhqv2-64x64")
    judge = "r3gan-ffhq-64x64"
    price = EDMFFHQ.price
    t_end = 1e-4
    keywords: ClassVar[Mapping[str, object]] = {**EDMFFHQ.keywords, "dropout": 0.25}


class LDMBedroom(LDM):
    """LSUN-Bedroom at 256 pixels: unconditional latent diffusion, VQ-f4."""

    name = "ldm-bedroom"
    needs: ClassVar[tuple[str, ...]] = ("ldm-lsun-bedrooms",)
    packages: ClassVar[tuple[str, ...]] = DIFFUSERS
    extractor = "inception-lsun-bedroom"
    measured_by: ClassVar[tuple[str, ...]] = (INCEPTION, "fid-lsun-bedroom256")
    price: ClassVar[Price] = Price(
        *(274_056_163, 202, 365, (3, 64, 64), (3, 256, 256)), decode_gflop=671, decode_mb=1550
    )

    def __init__(
        self,
        *,
        weights: str | None = None,
        t_min: float = 1e-3,
        **options: Unpack[NetworkOptions],
    ) -> None:
        """Read the published checkpoint.

        Args:
            weights: its place; where ``solverbench weights`` keeps it by default.
            t_min: where students stop.
            **options: see ``NetworkOptions``.
        """
        file = _place(weights, self.needs[0])
        super().__init__(weights=file, t_min=t_min, **options)
        _counted(self, self.price, self.needs[0], "ldm")


class LDMImageNet(LDM):
    """ImageNet at 256 pixels: class-conditional latent diffusion (cin256-v2), VQ-f4, guidance 2."""

    name = "ldm-imagenet"
    needs: ClassVar[tuple[str, ...]] = ("ldm-cin256-v2",)
    packages: ClassVar[tuple[str, ...]] = DIFFUSERS
    extractor = "inception-imagenet"
    measured_by: ClassVar[tuple[str, ...]] = (INCEPTION, "fid-imagenet256")
    price: ClassVar[Price] = Price(
        *(400_920_579, 208, 546, (3, 64, 64), (3, 256, 256), 2), decode_gflop=671, decode_mb=1550
    )

    def __init__(
        self,
        *,
        weights: str | None = None,
        guidance: float = 2.0,
        t_min: float = 1e-3,
        **options: Unpack[NetworkOptions],
    ) -> None:
        """Read the published checkpoint.

        Args:
            weights: its place; where ``solverbench weights`` keeps it by default.
            guidance: scale of classifier-free guidance.
            t_min: where students stop.
            **options: see ``NetworkOptions``.
        """
        file = _place(weights, self.needs[0])
        super().__init__(weights=file, guidance=guidance, t_min=t_min, **options)
        _counted(self, self.price, self.needs[0], "ldm")


class StableDiffusion15(StableDiffusion):
    """Stable Diffusion 1.5 at 512 pixels, guidance 7.5, with the captions of MS-COCO."""

    name = "sd15"
    needs: ClassVar[tuple[str, ...]] = ("sd-v1-5",)
    packages: ClassVar[tuple[str, ...]] = DIFFUSERS
    extractor = "inception-coco"
    measured_by: ClassVar[tuple[str, ...]] = ("coco-captions", INCEPTION, "fid-coco-30k")
    price: ClassVar[Price] = Price(
        *(859_520_964, 803, 1550, (4, 64, 64), (3, 512, 512), 2), decode_gflop=2510, decode_mb=5960
    )

    def __init__(
        self,
        *,
        weights: str | None = None,
        prompts: str | None = None,
        guidance: float = 7.5,
        t_min: float = 1e-3,
        **options: Unpack[NetworkOptions],
    ) -> None:
        """Read the folder of diffusers.

        Args:
            weights: its place; where ``solverbench weights`` keeps it by default.
            prompts: text file with a prompt a line; the captions of MS-COCO by default, where
                ``solverbench weights`` has them, else none.
            guidance: scale of classifier-free guidance.
            t_min: where students stop.
            **options: see ``NetworkOptions``.
        """
        if prompts is None and published_files.present("coco-captions"):
            prompts = str(published_files.path("coco-captions"))
        super().__init__(
            weights=_place(weights, self.needs[0]),
            prompts=prompts,
            guidance=guidance,
            t_min=t_min,
            **options,
        )
        _counted(self, self.price, self.needs[0], "sd")

"""LPIPS as a training distance: published weights from local files, nothing ever downloaded."""

import os
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from solverbench import weights
from solverbench.benchmark.distances import Decoder, Distance
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.files import sha256_of
from solverbench.images import Extractor

SIZE = 224  # pixels a side
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # statistics of ImageNet
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FLOOR = 1e-10  # added to norms of activations
WIDE = 64  # pixels a side from which a CPU is quicker with channels last
TRUNK, SHA256 = "vgg16-397923af.pth", "397923af"  # the name carries the first digits of the hash
TRUNK_VARIABLE = "SOLVERBENCH_VGG16"
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK}"
HEADS = "lpips/weights/v0.1/vgg.pth"
HEADS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


def prepare(images: Tensor) -> Tensor:
    """Images as the solver papers show them to LPIPS.

    Args:
        images: (B, 1 or 3, H, W) in about [-1, 1].

    Returns:
        (B, 3, 224, 224), float32, resized bilinearly without antialiasing, then clipped to
        [-1, 1]: values outside get no gradient.

    Source: specification of the losses of arXiv 2510.17699, section 8.1.
    """
    resized = functional.interpolate(
        coloured(images), size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )
    return resized.clamp(-1, 1)


def coloured(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), float32; a single channel is repeated.

    Raises:
        ValueError: for another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"LPIPS compares images of 1 or 3 channels; got {images.shape[1]}.")
    return images.float().expand(-1, 3, -1, -1)


def scaled(images: Tensor) -> Tensor:
    """The scaling layer: images (B, 3, H, W) in [-1, 1] to what the trunk was trained on."""
    shift, scale = (images.new_tensor(v).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
    return (images - shift) / scale


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """The head: weighted squared difference of activations at unit length over channels.

    Args:
        ours: activations of each stage, (B, C_i, H_i, W_i).
        theirs: likewise, of the other images.
        heads: weights of each stage, (1, C_i, 1, 1).

    Returns:
        (B,): sum over stages and channels, mean over pixels.

    Source: Zhang et al. (2018), eq. 1, as version 0.1 of the package ``lpips`` has it.
    """
    return weighted([unit(a) for a in ours], [unit(b) for b in theirs], heads)


def weighted(ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """What ``compare`` gives (B,) for activations that are at unit length already."""
    stages = zip(ours, theirs, heads, strict=True)
    parts = [(head * (a - b).square()).sum(dim=1).mean(dim=(1, 2)) for a, b, head in stages]
    return torch.stack(parts).sum(dim=0)


def unit(activations: Tensor) -> Tensor:
    """Unit length over channels; where all vanish the gradient is 0, that of a root is not."""
    norm: Tensor = torch.linalg.vector_norm(activations, dim=1, keepdim=True)
    return activations / (norm + FLOOR)


class Trunk(nn.Module):
    """The 13 convolutions of VGG16, frozen; random weights until ``load_trunk`` reads them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, *(width for stage in STAGES for width in stage)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Activations (B, C_i, H_i, W_i) of the last convolution of each of the five stages.

        Args:
            images: (B, 3, H, W), scaled; H and W at least 16.
        """
        layers, found = iter(self.convolutions), []
        for i, stage in enumerate(STAGES):
            if i:
                images = functional.max_pool2d(images, 2)
            for _ in stage:
                images = functional.relu(next(layers)(images))
            found.append(images)
        return found


def load_trunk() -> Trunk:
    """VGG16 as torchvision publishes it, from ``trunk_path``.

    Raises:
        SolverBenchError: if the file is not there, or is not the published one.
    """
    path, trunk = trunk_path(), Trunk()
    state = _load(path, SHA256, f"copy {TRUNK_URL} there again")
    names = sorted((n for n in state if n.startswith("features.")), key=_place)
    own = list(trunk.state_dict())  # weight and bias of each convolution, in order
    trunk.load_state_dict(dict(zip(own, (state[n] for n in names), strict=True)))
    return trunk


def _place(name: str) -> tuple[int, bool]:
    """Sorts ``features.10.weight`` by number, weights before biases."""
    _, number, kind = name.split(".")
    return int(number), kind == "bias"


def trunk_path() -> Path:
    """Where the trunk's weights are.

    ``SOLVERBENCH_VGG16``, else the folder of ``solverbench weights``, else torch.hub's checkpoints.

    Raises:
        SolverBenchError: if the variable names no file.
        MissingWeightsError: if there is none; nothing is downloaded.
    """
    named = os.environ.get(TRUNK_VARIABLE)
    if named and not Path(named).is_file():
        raise SolverBenchError(f"{TRUNK_VARIABLE} names {named}, and {named} is not there")
    kept = Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    for path in [Path(named)] if named else [weights.path("vgg16"), kept]:
        if path.is_file():
            return path
    raise MissingWeightsError(["vgg16"])


def load_heads() -> list[Tensor]:
    """Linear weights (1, C_i, 1, 1) of LPIPS 0.1, from the installed files of package ``lpips``.

    Raises:
        SolverBenchError: if the package is absent or its file is not the published one.
    """
    try:
        files = metadata.files("lpips") or []
    except metadata.PackageNotFoundError as error:
        raise SolverBenchError(
            "distance 'lpips' reads weights of the package lpips, which is not installed; "
            "pip install 'solverbench[lpips]', or use distance 'l1' or 'l2'"
        ) from error
    path = next((Path(str(f.locate())) for f in files if f.as_posix() == HEADS), Path(HEADS))
    state = _load(path, HEADS_SHA256, "pip install --force-reinstall 'lpips==0.1.4'")
    return [state[f"lin{i}.model.1.weight"] for i in range(len(STAGES))]


def _load(path: Path, sha256: str, remedy: str) -> dict[str, Tensor]:
    """Tensors of a file whose hash starts with ``sha256``; nothing in it can run."""
    try:
        path.stat()
        found = sha256_of(path)
    except OSError as error:
        raise SolverBenchError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    if not found.startswith(sha256):
        raise SolverBenchError(
            f"{path} holds other weights than the published ones: its SHA-256 starts with "
            f"{found[:8]}, not {sha256[:8]}; {remedy}"
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class LPIPS(Distance):
    """LPIPS with VGG16 of images at 224 pixels, the loss of the pixel models of GS and GAS.

    Args:
        backbone: decodes states.
        extractor: not used.
        trunk: the network; None reads the published weights. Its layout in memory may change.
        heads: its linear weights; None reads those of the package ``lpips``.

    Attributes:
        bfloat16: whether the trunk runs under autocast; what it gives is compared in float32.

    Raises:
        SolverBenchError: if the package or the file of the trunk is not there.

    Source: Zhang et al. (2018), version 0.1; preparation of arXiv 2510.17699, appendix D.
    """

    bfloat16: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Decoder,
        extractor: Extractor | None = None,
        *,
        trunk: Callable[[Tensor], list[Tensor]] | None = None,
        heads: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(backbone, extractor)
        self.heads = [head.float() for head in (load_heads() if heads is None else heads)]
        self.trunk = load_trunk() if trunk is None else trunk

    @torch.no_grad()
    def embed(self, target: Tensor) -> tuple[Tensor, ...]:
        """Activations (B, C_i, H_i, W_i) of each stage at unit length over channels, float32."""
        return tuple(unit(a) for a in self.activations(target))

    def between(self, student: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """LPIPS (B,) of states (B, C, H, W); float32 inside, dtype of ``student``."""
        ours = [unit(a) for a in self.activations(student)]
        self.heads = [head.to(student.device) for head in self.heads]
        return weighted(ours, embedded, self.heads).to(student.dtype)

    def activations(self, states: Tensor) -> list[Tensor]:
        """What the trunk says of the decoded states, stage by stage, float32."""
        device, images = states.device, scaled(self.prepared(self.backbone.decode(states)))
        if isinstance(self.trunk, nn.Module):
            layout = self._layout(images)
            self.trunk.to(device, memory_format=layout)  # type: ignore[call-overload]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            return [a.float() for a in self.trunk(images)]

    def _layout(self, images: Tensor) -> torch.memory_format:
        """Channels last where it was measured to be quicker, and for tensor cores."""
        last = self.bfloat16 if images.is_cuda else min(images.shape[-2:]) >= WIDE
        return torch.channels_last if last else torch.contiguous_format

    def prepared(self, images: Tensor) -> Tensor:
        """Decoded images (B, C, H, W) as the trunk gets them, before scaling."""
        return prepare(images)


class LPIPSNative(LPIPS):
    """LPIPS of images as they are, not resized and not clipped; another number than ``LPIPS``.

    Source: the loss of LD3 (Tong et al., 2025), as in the authors' code.
    """

    def prepared(self, images: Tensor) -> Tensor:
        """Decoded images (B, 3, H, W); at least 16 pixels a side, or the trunk has none left."""
        if min(images.shape[-2:]) < 2 ** (len(STAGES) - 1):
            raise ValueError(f"LPIPS needs 16 pixels a side; got {tuple(images.shape[-2:])}.")
        return coloured(images)


class LPIPSBfloat16(LPIPS):
    """``LPIPS`` whose trunk runs in bfloat16: quicker; gradients change by percents."""

    bfloat16 = True


class LPIPSNativeBfloat16(LPIPSNative):
    """``LPIPSNative`` whose trunk runs in bfloat16: quicker; gradients change by percents."""

    bfloat16 = True

"""Metrics that compare each image with the teacher's image of the same seed."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from solverbench.benchmark.lpips import LPIPS
from solverbench.benchmark.metrics.base import Measured, Metric, standard_error
from solverbench.benchmark.results import OF_A_MEAN
from solverbench.images import Features, Reference

PerImage = Callable[[Tensor, Tensor], Tensor]  # images and the teacher's (B, C, H, W) -> (B,)
BATCH = 64
PEAK = 2.0  # range of images in [-1, 1]
FLOOR = PEAK**2 * 1e-10  # of the mean square in a PSNR, which so is at most 100 dB


def l1(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean absolute difference of each image (B,)."""
    return (ours - theirs).abs().flatten(1).mean(dim=1)


def l2(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of each image (B,)."""
    return (ours - theirs).square().flatten(1).mean(dim=1)


def rmse(ours: Tensor, theirs: Tensor) -> Tensor:
    """Root mean square difference of each image (B,)."""
    return l2(ours, theirs).sqrt()


def psnr(ours: Tensor, theirs: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) of images in [-1, 1], in dB, at most 100."""
    return 10 * (PEAK**2 / l2(ours, theirs).clamp_min(FLOOR)).log10()


MEASURES: dict[str, PerImage] = {"l1": l1, "l2": l2, "rmse": rmse, "psnr": psnr}


def image_difference(
    *, generated: Tensor, teacher: Tensor, measure: str | PerImage = "l1"
) -> Measured:
    """How far images are from the teacher's images of the same seeds, on the mean.

    Args:
        generated: (M, C, H, W), M >= 2; images in [-1, 1], not quantised, or latents.
        teacher: of the same seeds in the same order.
        measure: ``l1``, ``l2``, ``rmse``, ``psnr`` (dB, images only), or any function of two
            batches, for example ``solverbench.benchmark.lpips.LPIPS``.

    Returns:
        Mean over images; ``influence`` holds the value of each image, so ``paired_difference`` of
        two methods has its own error.

    Raises:
        ValueError: for unequal shapes, fewer than two images, NaN or infinity, or an unknown
            measure.
    """
    function = MEASURES.get(measure) if isinstance(measure, str) else measure
    if function is None:
        raise ValueError(f"unknown measure '{measure}'; use one of {', '.join(MEASURES)}.")
    values = per_image(generated, teacher, function)
    if len(values) < 2:
        raise ValueError(f"an error needs at least two images; got {len(values)}.")
    capped = function is psnr and bool((values > 99.999999).any())
    return Measured(
        value=float(values.mean()),
        se=standard_error(values),
        se_method=OF_A_MEAN,
        num_generated=len(values),
        num_reference=len(values),
        dim=generated[0].numel(),
        flags=("capped",) if capped else (),
        facts={"measure": getattr(function, "__name__", type(function).__name__)},
        influence=values,
    )


def per_image(generated: Tensor, teacher: Tensor, function: PerImage) -> Tensor:
    """Values (M,), float64, of images that share a seed.

    Raises:
        ValueError: for unequal shapes, no images, NaN or infinity.
    """
    if generated.shape != teacher.shape:
        raise ValueError(
            f"paired images need equal shapes; got {tuple(generated.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    pairs = zip(torch.split(generated, BATCH), torch.split(teacher, BATCH), strict=True)
    with torch.no_grad():
        parts = [function(a.double().cpu(), b.double().cpu()) for a, b in pairs]
    values = torch.cat(parts).double()
    if not len(values) or not values.isfinite().all():
        raise ValueError("images hold NaN or infinity, or there are none.")
    return values


class ToTeacher(Metric):
    """Mean over images of a difference to the teacher's image of the same seed.

    Images are decoded, in [-1, 1] and not quantised.
    """

    higher_is_better = False
    against = "teacher"
    digits = 4

    @abstractmethod
    def function(self) -> PerImage:
        """What compares two batches."""

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """In units of the function.

        Raises:
            ValueError: where either side has no images, shapes differ, or values are not finite.
        """
        ours, theirs = self.images(generated, reference)
        return float(per_image(ours, theirs, self.function()).mean())

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of a mean over images; needs two of them."""
        ours, theirs = self.images(generated, reference)
        return image_difference(generated=ours, teacher=theirs, measure=self.function())

    def images(self, generated: Features, reference: Reference) -> tuple[Tensor, Tensor]:
        """The decoded images of both sides.

        Raises:
            ValueError: where one has none.
        """
        theirs = None if reference.features is None else reference.features.images
        if generated.images is None or theirs is None:
            raise ValueError(f"{self.label('')} needs the decoded images of both sides.")
        return generated.images, theirs


class RMSETeacher(ToTeacher):
    """Mean over images of the root mean square difference to the teacher's image."""

    about = "mean over images of the pixel RMSE to the teacher's image of the same seed, in [-1, 1]"

    def label(self, extractor_name: str) -> str:
        """``RMSE-T``."""
        return "RMSE-T"

    def function(self) -> PerImage:
        """``rmse``."""
        return rmse


class L1Teacher(ToTeacher):
    """Mean over images of the mean absolute difference to the teacher's image."""

    about = "mean absolute pixel difference to the teacher's image of the same seed, in [-1, 1]"

    def label(self, extractor_name: str) -> str:
        """``L1-T``."""
        return "L1-T"

    def function(self) -> PerImage:
        """``l1``."""
        return l1


class L2Teacher(ToTeacher):
    """Mean over images of the mean squared difference to the teacher's image."""

    about = "mean squared pixel difference to the teacher's image of the same seed, in [-1, 1]"

    def label(self, extractor_name: str) -> str:
        """``L2-T``."""
        return "L2-T"

    def function(self) -> PerImage:
        """``l2``."""
        return l2


class PSNRTeacher(ToTeacher):
    """Mean over images of the peak signal-to-noise ratio against the teacher's image."""

    higher_is_better = True
    digits = 2
    about = (
        "mean over images of the PSNR in dB to the teacher's image of the same seed; at most 100"
    )

    def label(self, extractor_name: str) -> str:
        """``PSNR-T``."""
        return "PSNR-T"

    def function(self) -> PerImage:
        """``psnr``."""
        return psnr


class Undecoded:
    """Stands for a backbone where images are decoded already."""

    def decode(self, x: Tensor) -> Tensor:
        """Images as they are."""
        return x


class LPIPSTeacher(ToTeacher):
    """Mean over images of LPIPS (VGG16, version 0.1, 224 pixels) to the teacher's image."""

    about = "LPIPS (VGG16, v0.1, 224 pixels) to the teacher's image of the same seed"

    def label(self, extractor_name: str) -> str:
        """``LPIPS-T``."""
        return "LPIPS-T"

    def function(self) -> PerImage:
        """LPIPS with the published weights, from local files.

        Raises:
            SolverBenchError: where they are not there; says where to put them.
        """
        return LPIPS(Undecoded())

    def prepare(self) -> None:
        """Read the weights once."""
        self.function()

    def images(self, generated: Features, reference: Reference) -> tuple[Tensor, Tensor]:
        """The decoded images of both sides.

        Raises:
            ValueError: where one has none, or they are not in [-1, 1].
        """
        ours, theirs = super().images(generated, reference)
        if len(theirs) and float(theirs.min()) >= -0.05:
            raise ValueError("LPIPS-T reads images in [-1, 1]; these look like [0, 1].")
        return ours, theirs

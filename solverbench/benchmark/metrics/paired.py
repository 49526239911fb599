"""Metrics that compare each image with the teacher's image of the same seed."""

from solverbench.benchmark.metrics.base import Metric
from solverbench.images import Features, Reference


class RMSETeacher(Metric):
    """Mean over images of the root mean square difference to the teacher's image.

    Images are decoded, in [-1, 1] and not quantised.
    """

    higher_is_better = False
    against = "teacher"
    digits = 4
    about = "mean over images of the pixel RMSE to the teacher's image of the same seed, in [-1, 1]"

    def label(self, extractor_name: str) -> str:
        """``RMSE-T``."""
        return "RMSE-T"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """In units of the images' range [-1, 1].

        Raises:
            ValueError: where either side has no images, shapes differ, or values are not finite.
        """
        ours = generated.images
        theirs = None if reference.features is None else reference.features.images
        if ours is None or theirs is None:
            raise ValueError("rmse-teacher needs the decoded images of both sides.")
        if ours.shape != theirs.shape:
            raise ValueError(
                f"rmse-teacher needs equal shapes; got {tuple(ours.shape)} and "
                f"{tuple(theirs.shape)}."
            )
        difference = ours.double().cpu() - theirs.double().cpu()
        value = float(difference.square().flatten(1).mean(dim=1).sqrt().mean())
        if not value < float("inf"):
            raise ValueError("images hold NaN or infinity, or there are none.")
        return value

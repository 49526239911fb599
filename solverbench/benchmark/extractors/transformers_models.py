"""DINOv2 and CLIP, run by the library transformers from local folders."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from solverbench.benchmark.extractors.base import Network, PublishedExtractor
from solverbench.benchmark.extractors.resizing import normalised, tf1_bilinear
from solverbench.benchmark.extractors.vgg import MEAN, STD
from solverbench.errors import SolverBenchError
from solverbench.images import Traits

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TransformersExtractor(PublishedExtractor):
    """A folder of transformers, read without a connection.

    Attributes:
        kind: class of the model in transformers.
    """

    packages = ("transformers",)
    kind: ClassVar[str]

    def model(self) -> torch.nn.Module:
        """The network, float32 and frozen.

        Raises:
            SolverBenchError: where the folder holds another one.
        """
        import transformers

        try:
            made = getattr(transformers, self.kind).from_pretrained(
                self.path, local_files_only=True, dtype=torch.float32
            )
        except Exception as error:  # the library raises errors of many kinds
            what = " ".join(str(error).split())[:200]
            raise SolverBenchError(f"{self.path} is no folder of {self.kind}: {what}") from error
        network: torch.nn.Module = made
        return network.to(self.device).eval().requires_grad_(False)


class DINOv2(TransformersExtractor):
    """Class token of DINOv2 ViT-L/14; the resize rule is part of the name, for others differ."""

    name = "dinov2-vitl14-tf1"
    weights_file = "dinov2-vitl14"
    kind = "Dinov2Model"

    @property
    def traits(self) -> Traits:
        """The class token after the last norm."""
        return Traits(1024, 3, "TF1 bilinear to 224", self.batch, licence="Apache-2.0")

    def read(self) -> Network:
        """Resize, normalise, class token."""
        network = self.model()

        def features(images: Tensor) -> Tensor:
            x = normalised(tf1_bilinear(images, 224, 224) / 255, MEAN, STD)
            rows: Tensor = network(pixel_values=x).last_hidden_state[:, 0]
            return rows

        return features


class CLIP(TransformersExtractor):
    """Image embedding of CLIP ViT-L/14 at 336 pixels, as CMMD reads it; not of unit length."""

    name = "clip-vit-l-14-336"
    weights_file = "clip-vit-l-14-336"
    kind = "CLIPVisionModelWithProjection"

    @property
    def traits(self) -> Traits:
        """The projected class token."""
        return Traits(
            768, 3, "bicubic to 336 without antialiasing", self.batch, licence="see upstream"
        )

    def read(self) -> Network:
        """Resize, normalise, embedding."""
        network = self.model()

        def features(images: Tensor) -> Tensor:
            x = functional.interpolate(
                images / 255, size=(336, 336), mode="bicubic", align_corners=False
            )
            rows: Tensor = network(pixel_values=normalised(x, CLIP_MEAN, CLIP_STD)).image_embeds
            return rows

        return features

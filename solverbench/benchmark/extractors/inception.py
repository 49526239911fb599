"""The 2015 Inception network: the one whose Frechet distance may be called FID."""

import warnings

import torch
from torch import Tensor

from solverbench.benchmark.extractors.base import (
    Network,
    PublishedExtractor,
    fill,
    read_state,
)
from solverbench.benchmark.extractors.inception_network import DIM, Inception
from solverbench.errors import SolverBenchError
from solverbench.images import Traits


class InceptionEDM(PublishedExtractor):
    """NVIDIA's translation of the 2015 Inception, as TorchScript; what EDM and the paper use."""

    name = "inception-edm"
    weights_file = "inception-2015-12-05-torchscript"

    @property
    def traits(self) -> Traits:
        """2048 averages before the classifier."""
        return Traits(
            DIM, 3, "TF1 bilinear to 299, inside the network", self.batch, licence="see upstream"
        )

    def read(self) -> Network:
        """The script; it runs in TorchScript's own interpreter."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.*` is deprecated")
                script = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(self.path), map_location=self.device
                ).eval()
        except (RuntimeError, ValueError) as error:
            what = str(error).partition("\n")[0][:200]
            raise SolverBenchError(f"{self.path} is no TorchScript file: {what}") from error

        def features(images: Tensor) -> Tensor:
            rows: Tensor = script(images.to(torch.uint8), return_features=True)
            return rows

        return features


class InceptionCompat(PublishedExtractor):
    """The same network and weights in plain PyTorch, from torch-fidelity's file."""

    name = "inception-v3-compat"
    weights_file = "inception-2015-12-05-compat"

    @property
    def traits(self) -> Traits:
        """2048 averages before the classifier."""
        return Traits(DIM, 3, "TF1 bilinear to 299", self.batch, licence="see upstream")

    def read(self) -> Network:
        """Our own layers with the weights of the file."""
        network = Inception()
        fill(network, read_state(self.path), self.path)
        return network.to(self.device).eval().requires_grad_(False)

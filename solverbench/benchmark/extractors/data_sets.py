"""The 2015 Inception beside published statistics of a data set: what the paper's FID is made of."""

import hashlib

import torch

from solverbench import weights
from solverbench.benchmark.extractors.inception import InceptionCompat
from solverbench.benchmark.metrics.statistics import read_statistics
from solverbench.errors import SolverBenchError
from solverbench.images import Moments, Reference


class DataSetInception(InceptionCompat):
    """``inception-v3-compat`` with a reference: published moments, no rows.

    Not ``inception-edm``: a TorchScript file is a program, and a run executes no file.
    """

    def reference(self) -> Reference:
        """Moments of the published file; ADM's files hold images too, which are left alone."""
        (path,) = weights.require(self.statistics)
        found = read_statistics(path)
        if len(found.mu) != self.traits.dim:
            raise SolverBenchError(
                f"{path} holds {len(found.mu)} dimensions, not {self.traits.dim}: another file"
            )
        digest = hashlib.sha256(found.mu.numpy().tobytes())
        digest.update(found.sigma.numpy().tobytes())
        none = torch.zeros(0, dtype=torch.float64)
        about = weights.item_of(self.statistics).about.strip()
        return Reference(
            embedding=Moments(found.mu, found.sigma, found.num, self.name),
            texture=Moments(none, none.new_zeros(0, 0), found.num),
            features=None,
            sha256=digest.hexdigest(),
            about=about,
        )


class InceptionCifar10(DataSetInception):
    """FID to CIFAR10, 32 pixels."""

    statistics = "fid-cifar10-32x32"


class InceptionFFHQ(DataSetInception):
    """FID to FFHQ, 64 pixels."""

    statistics = "fid-ffhq-64x64"


class InceptionAFHQv2(DataSetInception):
    """FID to AFHQv2, 64 pixels."""

    statistics = "fid-afhqv2-64x64"


class InceptionLSUNBedroom(DataSetInception):
    """FID to LSUN-Bedroom, 256 pixels."""

    statistics = "fid-lsun-bedroom256"


class InceptionImageNet(DataSetInception):
    """FID to ImageNet, 256 pixels."""

    statistics = "fid-imagenet256"


class InceptionCOCO(DataSetInception):
    """FID to 30,000 validation images of MS-COCO."""

    statistics = "fid-coco-30k"

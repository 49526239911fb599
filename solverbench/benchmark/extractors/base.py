"""What extractors of published networks share: local weights, fixed batches, full float32."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from solverbench import weights
from solverbench.benchmark.metrics.balls import full_float32
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.files import sha256_of
from solverbench.images import Extractor, Reference

BATCH = 64
Network = Callable[[Tensor], Tensor]  # float32 images (B, 3, H, W) in 0 .. 255 -> (B, D)


class PublishedExtractor(Extractor):
    """A published network of colour images; subclasses read it and say what its rows are.

    Every call of the network has ``batch`` rows, the last one filled up with black images,
    so a row depends neither on its neighbours nor on how many images there are.

    Attributes:
        name: goes into labels of metrics.
        weights_file: name in the catalogue of published files.
        statistics: likewise, of its data set; empty where it belongs to none.
        packages: optional libraries that it imports.
    """

    weights_file: ClassVar[str]
    statistics: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, *, weights: str | None = None, device: str | None = None, batch: int = BATCH
    ) -> None:
        """Nothing is read yet.

        Args:
            weights: file or folder; where ``solverbench weights`` keeps it by default.
            device: where the network runs; CUDA where there is one by default.
            batch: images through the network at once, on which rounding depends a little.

        Raises:
            ValueError: for an empty batch.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; give 1 or more.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch, self._given = batch, Path(weights) if weights else None
        files = ("" if weights else self.weights_file, self.statistics)
        self.needs = tuple(file for file in files if file)

    @property
    def path(self) -> Path:
        """Where the weights are."""
        return self._given or weights.path(self.weights_file)

    def available(self) -> tuple[bool, str]:
        """Whether libraries and files are here."""
        absent = [name for name in self.packages if find_spec(name) is None]
        if absent:
            return False, f"needs {', '.join(absent)}: pip install 'solverbench[metrics]'"
        missing = [name for name in self.needs if not weights.present(name)]
        if missing:
            return False, str(MissingWeightsError(missing))
        if not self.path.exists():
            return False, f"{self.path} is not there; name the file of its weights"
        return True, ""

    @cached_property
    def sha256(self) -> str:
        """Hash of the weight file; of the hashes of all files, for a folder."""
        if self.path.is_file():
            return sha256_of(self.path)
        files = sorted(p for p in self.path.rglob("*") if p.is_file())
        lines = [f"{sha256_of(p)}  {p.relative_to(self.path).as_posix()}\n" for p in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @abstractmethod
    def read(self) -> Network:
        """The network on ``device``, in eval mode.

        Raises:
            SolverBenchError: where the file is another one.
        """

    @cached_property
    def network(self) -> Network:
        """What ``read`` gives, once."""
        return self.read()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features of (B, 3, H, W) uint8 images: ``embedding`` (B, D); no texture is kept."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"extractor {self.name} reads uint8 images of shape (B, 3, H, W); got "
                f"{pixels.dtype} {tuple(pixels.shape)}."
            )
        plain = torch.autocast(self.device.type, enabled=False)
        with torch.no_grad(), full_float32("matmul"), full_float32("conv"), plain:
            rows = [self._rows(part) for part in torch.split(pixels, self.batch)]
        embedding = torch.cat(rows) if rows else torch.zeros(0, self.traits.dim)
        return {"embedding": embedding, "texture": embedding.new_empty(len(embedding), 0)}

    def _rows(self, part: Tensor) -> Tensor:
        filled = part.new_zeros(self.batch, *part.shape[1:])
        filled[: len(part)] = part
        rows = self.network(filled.to(self.device).float())[: len(part)]
        if rows.ndim != 2 or self.traits.dim not in (0, rows.shape[1]):
            raise SolverBenchError(
                f"{self.path} gives features of shape {tuple(rows.shape)}, not (B, "
                f"{self.traits.dim}): it is another network"
            )
        return rows.float().cpu()

    def reference(self) -> Reference:
        """None of its own.

        Raises:
            SolverBenchError: always; says what to do.
        """
        raise SolverBenchError(
            f"extractor {self.name} belongs to no data set; name a file of statistics or a folder "
            "of images as the reference"
        )


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of ``torch.save``; nothing in it can run.

    Raises:
        SolverBenchError: where it is none.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, unpickler and torch raise errors of many kinds
        what = str(error).partition("\n")[0][:200]
        raise SolverBenchError(f"{path} is no file of weights: {what}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SolverBenchError(f"{path} holds no table of tensors; another file is needed")
    return state


def fill(network: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights; counters of batches may be absent, and nothing may be of another shape.

    Raises:
        SolverBenchError: where the file belongs to another network.
    """
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise SolverBenchError(f"{path} belongs to another network: {what}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise SolverBenchError(
            f"{path} belongs to another network: it has no {missing[0]} ({len(missing)} missing)"
        )

"""The contract of a metric, and what a measurement is: a number with its error and its facts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solverbench.benchmark.results import FLAGS as FLAGS
from solverbench.benchmark.results import LEVEL as LEVEL
from solverbench.images import Features, Reference, check

Rows = Tensor | NDArray[np.floating]  # features (M, D), or whatever has one row an image
Fact = str | int | float | bool


class Metric(ABC):
    """A pure function of generated and reference features; knows no network, file or device.

    Attributes:
        higher_is_better: direction.
        against: whether the reference is the data set or the teacher's samples of the same seeds.
        digits: decimals shown.
        about: one line: what is compared with what, by which convention.
        reads_images: whether it wants decoded images too; where no metric does, none are kept.
    """

    higher_is_better: ClassVar[bool]
    against: ClassVar[Literal["data", "teacher"]]
    digits: ClassVar[int]
    about: ClassVar[str]
    reads_images: ClassVar[bool] = True

    @abstractmethod
    def label(self, extractor_name: str) -> str:
        """How tables call it, with the extractor where the value depends on one."""

    def prepare(self) -> None:  # noqa: B027 - a hook, empty for most
        """Look whether what it reads is here, before anything slow starts; nothing by default.

        Raises:
            SolverBenchError: says what is missing.
        """

    @abstractmethod
    def compute(self, *, generated: Features, reference: Reference) -> float:
        """The value, finite.

        Raises:
            ValueError: for features that cannot be compared.
        """

    def measure(self, *, generated: Features, reference: Reference) -> "Measured":
        """The same value, bit for bit, with its error where one is known.

        Args:
            generated: of images in the order of their seeds.
            reference: what they are compared with.

        Raises:
            ValueError: as ``compute``.
        """
        value = self.compute(generated=generated, reference=reference)
        num, dim = generated.embedding.shape
        return Measured(value=value, num_generated=num, dim=dim, flags=("no_se",))


class NotFiniteError(ValueError):
    """A metric that overflowed, or has no value."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with what one must know of it.

    Attributes:
        value: finite; anything else is a ``NotFiniteError``.
        se: standard error with the reference held fixed; None where there is none, and a flag
            says why.
        se_method: how it was found; empty where there is none.
        num_generated: rows measured; 0 where a file of statistics does not say.
        num_reference: rows they are compared with, likewise.
        dim: of the features, or numbers an image.
        flags: what a reader must know to compare; ``FLAGS`` explains each.
        facts: conventions, for example ``k`` or a seed.
        influence: (M,), float64: what each generated row adds; ``se`` is its standard deviation
            over sqrt(M). Two of these belong to one pair of seeds row by row.
    """

    value: float
    se: float | None = None
    se_method: str = ""
    num_generated: int = 0
    num_reference: int = 0
    dim: int = 0
    flags: tuple[str, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    influence: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {"value": self.value, "error": self.se or 0.0, **self.facts}
        for what, found in numbers.items():
            if isinstance(found, float) and not math.isfinite(found):
                raise NotFiniteError(
                    f"its {what} is {found}: features are too large or too small; scale both sides"
                )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two methods lie apart that started from the same seeds.

    Attributes:
        difference: value of ``a`` less that of ``b``.
        se: its standard error; None where one side has none.
        num: pairs.
        flags: of both sides.
        a: one side.
        b: the other.
    """

    difference: float
    se: float | None
    num: int
    flags: tuple[str, ...]
    a: Measured
    b: Measured

    @property
    def significant(self) -> bool:
        """Whether they lie more than 1.96 standard errors apart; False where there is no error."""
        return self.se is not None and abs(self.difference) > LEVEL * self.se


def paired_difference(a: Measured, b: Measured) -> Difference:
    """The difference of two measurements of the same metric on the same seeds.

    Args:
        a: of one method; row i of its influence and row i of the other's share a seed.
        b: of the other, against the same reference.

    Returns:
        ``se`` is sd(influence_a - influence_b) / sqrt(M): methods of one teacher start from the
        same noise, so it is far below that of two separate runs.

    Raises:
        ValueError: where the number of rows differs.

    Source: delta method; specification of the metrics, section 5.2.
    """
    if a.num_generated != b.num_generated:
        raise ValueError(
            f"a paired difference needs equal seeds on both sides; got {a.num_generated} and "
            f"{b.num_generated} rows. Sample both from one list of seeds."
        )
    se = None
    if a.influence is not None and b.influence is not None:
        se = standard_error(a.influence - b.influence)
    return Difference(
        difference=a.value - b.value,
        se=se,
        num=a.num_generated,
        flags=tuple(dict.fromkeys(a.flags + b.flags)),
        a=a,
        b=b,
    )


def standard_error(influence: Tensor) -> float:
    """Standard deviation over sqrt(M) of values (M,), M >= 2."""
    return float(influence.double().std()) / math.sqrt(len(influence))


def as_rows(features: Rows) -> Tensor:
    """Arrays and tensors (M, D) as checked floating tensors on the host.

    Raises:
        ValueError: for complex numbers, another shape, fewer than two rows, or NaN or infinity
            among them.
    """
    if not isinstance(features, Tensor):
        features = torch.from_numpy(np.require(features, requirements="W"))
    if features.is_complex():
        raise ValueError(f"features must be real numbers; got {features.dtype}.")
    return check(features if features.is_floating_point() else features.double())


def rows_of(reference: Reference) -> Tensor:
    """Embeddings (N, D) of a reference, for metrics that moments do not suffice for.

    Raises:
        ValueError: where it carries none.
    """
    if reference.features is None:
        raise ValueError("this reference holds moments only; this metric needs rows.")
    return reference.features.embedding


def as_pair(generated: Rows, reference: Rows) -> tuple[Tensor, Tensor]:
    """Both sides as ``as_rows`` gives them.

    Raises:
        ValueError: as ``as_rows``, or where D differs.
    """
    x, y = as_rows(generated), as_rows(reference)
    same_dimensions(x.shape[1], y.shape[1])
    return x, y


def same_dimensions(generated: int, reference: int) -> None:
    """Refuse features of two extractors.

    Raises:
        ValueError: where the numbers differ.
    """
    if generated != reference:
        raise ValueError(
            f"generated features have {generated} dimensions, reference features {reference}; "
            "use one extractor for both."
        )

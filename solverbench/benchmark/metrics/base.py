"""The contract of a metric."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from solverbench.images import Features, Reference


class Metric(ABC):
    """A pure function of generated and reference features; knows no network, file or device.

    Attributes:
        higher_is_better: direction.
        against: whether the reference is the data set or the teacher's samples of the same seeds.
        digits: decimals shown.
        about: one line: what is compared with what, by which convention.
    """

    higher_is_better: ClassVar[bool]
    against: ClassVar[Literal["data", "teacher"]]
    digits: ClassVar[int]
    about: ClassVar[str]

    @abstractmethod
    def label(self, extractor_name: str) -> str:
        """How tables call it, with the extractor where the value depends on one."""

    @abstractmethod
    def compute(self, *, generated: Features, reference: Reference) -> float:
        """The value, finite.

        Raises:
            ValueError: for features that cannot be compared.
        """

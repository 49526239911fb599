"""The catalogue of published files: ``weights_catalogue.yaml``, typed; a leaf."""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from solverbench.errors import unknown_name

CATALOGUE = Path(__file__).with_name("weights_catalogue.yaml")
Kind = Literal[
    "backbone", "discriminator", "extractor", "statistics", "captions", "teachers", "students"
]


class Data(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(Data):
    """A place on the Hugging Face hub.

    Attributes:
        repo: ``owner/name``.
        type: of the repository.
        file: one file of it; the whole folder by default.
        patterns: which files of the folder; all by default.
    """

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    type: Literal["model", "dataset"] = "model"
    file: str | None = None
    patterns: tuple[str, ...] = ()


class Item(Data):
    """A published file, or a folder of them.

    Attributes:
        name: as on the command line.
        kind: what it is for.
        file: where it belongs in ``folder()``.
        about: one line.
        licence: as upstream states it.
        url: where it is, https.
        hub: where it is, on the hub.
        manual: how to get it, where no program can.
        member: name inside the zip archive that ``url`` is.
        size: bytes, where upstream states them.
        roughly: bytes, where upstream states a round number.
        sha256: of the file, where upstream states it; its first digits are enough.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    kind: Kind
    file: str
    about: str
    licence: str
    url: str | None = Field(None, pattern="^https://")
    hub: Hub | None = None
    manual: str | None = None
    member: str | None = None
    size: PositiveInt | None = None
    roughly: PositiveInt | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.url, self.hub, self.manual)) != 1:
            raise ValueError("one of url, hub, manual is needed")
        if PurePosixPath(self.file).is_absolute() or ".." in PurePosixPath(self.file).parts:
            raise ValueError("file leaves the folder")
        return self

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        place = f"{self.hub.repo} on the Hugging Face hub" if self.hub else ""
        return self.url or place or self.manual or ""


@cache
def catalogue() -> dict[str, Item]:
    """All published files by name, in the order of the catalogue."""
    items = [Item.model_validate(entry) for entry in yaml.safe_load(CATALOGUE.read_text("utf-8"))]
    found = {item.name: item for item in items}
    assert len(found) == len(items), "names are unique"
    return found


def item_of(name: str) -> Item:
    """The entry of a name.

    Raises:
        SolverBenchError: for a name that the catalogue does not have.
    """
    if name not in catalogue():
        raise unknown_name("file", name, catalogue(), "solverbench weights list")
    return catalogue()[name]

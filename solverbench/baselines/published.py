"""What papers report, typed. Quoted, never mixed with what was measured here."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from solverbench.benchmark.spec import Model, Value

Data = Literal["cifar10", "ffhq", "afhqv2", "lsun-bedroom", "imagenet", "ms-coco"]


class Published(Model):
    """One printed number.

    Attributes:
        table: number of the table, for example ``2a``.
        method: as the paper writes it.
        solver: our name; None where there is no such solver here, or it is the best of several.
        schedule: our name of the optimiser that chose its times; None where there was none.
        options: conventions known from the paper, which a reproduced row must share.
        data: data set.
        backbone: our name of the network.
        nfe: network evaluations a sample.
        metric: ``fid``.
        value: as printed.
        num_images: samples it was computed from.
        source: paper and table.
        flags: ``teacher``, or ``other-teacher``: the paper calls it not comparable.
    """

    table: str
    method: str
    solver: str | None
    schedule: str | None = None
    options: dict[str, Value]
    data: Data
    backbone: str
    nfe: PositiveInt
    metric: Literal["fid"]
    value: PositiveFloat
    num_images: PositiveInt
    source: str
    flags: tuple[str, ...] = ()


class _Row(Model):
    """A printed row: one value for each NFE."""

    table: str
    data: Data
    backbone: str
    method: str
    solver: str | None
    schedule: str | None = None
    options: dict[str, Value]
    nfe: list[PositiveInt] = Field(min_length=1)
    values: list[PositiveFloat]
    flags: tuple[str, ...]


class _File(Model):
    """Layout of ``published.json``."""

    paper: str
    about: str
    metric: Literal["fid"]
    num_images: dict[Data, PositiveInt]
    rows: list[_Row]


def load_published() -> tuple[Published, ...]:
    """Every published value, in the order of the tables.

    Source: arXiv 2510.17699, table 2; NFE of the teachers from its tables 17 and 18.
    """
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    file = _File.model_validate_json(text)
    return tuple(entry for row in file.rows for entry in _entries(file, row))


def _entries(file: _File, row: _Row) -> list[Published]:
    """The values of one row, one by one."""
    shared = row.model_dump(exclude={"nfe", "values"})
    shared |= {"metric": file.metric, "num_images": file.num_images[row.data]}
    shared["source"] = f"{file.paper} Table {row.table}"
    return [
        Published(nfe=nfe, value=value, **shared)
        for nfe, value in zip(row.nfe, row.values, strict=True)
    ]

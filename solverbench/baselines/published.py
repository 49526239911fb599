"""What papers report, typed. Quoted, never mixed with what was measured here.

The data lie in ``published_tables``, one file a table and ``related.json`` for other papers. A file
holds parts, a part printed rows; ``values`` has the numbers of a row as printed, and a value is
what the file, the part, its column and its row say together: the later of them wins, but flags add
up and options are joined.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from solverbench.benchmark.spec import Model, Value
from solverbench.errors import unknown_name

Data = Literal[
    "cifar10", "ffhq", "afhqv2", "lsun-bedroom", "imagenet", "imagenet-64", "ms-coco"
]  # imagenet: 256 pixels
Metric = Literal[
    "fid",
    "precision",
    "recall",
    "density",
    "coverage",
    "lpips",
    "loss",
    "psnr",
    "train-time",
    "sampling-time",
    "peak-memory",
    "overhead",
    "parameters",
]
Unit = Literal["1", "dB", "min", "h", "day", "GB", "%"]
Bound = Literal["", "<", "<=", ">=", "~"]
Flag = Literal[
    "teacher",
    "other-teacher",
    "counts-guidance-twice",
    "afs",
    "trained-on-metric-features",
    "other-evaluator",
    "quoted",
    "not-verified",
    "parallel",
    "stochastic",
    "extra-network",
    "per-sample",
    "conditioning-change",
    "weights-change",
]
UNITS: Mapping[Metric, tuple[Unit, ...]] = {
    "psnr": ("dB",),
    "train-time": ("min", "h", "day"),
    "sampling-time": ("min",),
    "peak-memory": ("GB",),
    "overhead": ("%",),
}
TABLES = (  # of arXiv 2510.17699
    *("2a", "2b", "2c", "3", "4", "5", "6", "7a", "7b", "8", "9", "10", "11", "12a", "12b"),
    *("13a", "13b", "14a", "14b", "15a", "15b", "16", "17", "18"),
)
FOLDER = Path(__file__).with_name("published_tables")
NUMBER = re.compile(r"(<=|>=|<|~)?(\d+(?:\.\d+)?)")


class Published(Model):
    """One printed number.

    Attributes:
        table: number of the table, for example ``2a``; None for the numbers of other papers.
        source: paper and table.
        method: as the paper writes it.
        solver: our name; None where there is no such solver here, or it is the best of several.
        schedule: our name of the optimiser that chose its times; None where there was none.
        base: our name of the solver whose steps the method keeps or starts from; None where the
            method has none or the paper does not name it.
        options: conventions known from the paper, which a reproduced row must share.
        fit: settings of training that the table names, under the keys of ``FitSpec``.
        evaluation: how it was measured, where the metric alone does not say.
        trained_on: data set of the fit, where it is another one than ``data``.
        data: data set; None where the paper names none.
        backbone: our name of the network; None where there is no such network here.
        network: what the paper says of a network that is not here.
        nfe: network evaluations a sample; None where the paper names none, or means all.
        metric: what was measured; ``loss`` is the distance to the teacher.
        unit: of the value, ``1`` where it has none; ``GB`` as printed, which may mean GiB.
        value: as printed.
        printed: the digits, trailing zeros kept.
        bound: ``<`` and the like where the paper prints only a limit, ``~`` for about.
        spread: printed beside the value; None where there is none.
        num_images: samples it was computed from; None where there are none or nobody says.
        device: what a time was taken on.
        flags: what makes it hard to compare. ``teacher``: of a teacher. ``other-teacher``: of
            students of another one. ``counts-guidance-twice``: NFE counts a guided call as two.
            ``afs``: first step without a call. ``trained-on-metric-features``: of the metric.
            ``other-evaluator``: features or references of other code. ``quoted``: the source
            copied it from another paper. ``not-verified``: something in the record, see ``note``,
            is not certain. ``parallel``: NFE counts simultaneous calls as one. ``stochastic``.
            ``extra-network``: one beside the backbone. ``per-sample``: coefficients or times
            differ between samples. ``conditioning-change``, ``weights-change``: of the backbone.
        note: what is doubtful, or differs between tables.
    """

    table: str | None
    source: str
    method: str
    solver: str | None
    schedule: str | None = None
    base: str | None = None
    options: dict[str, Value] = Field(default_factory=dict)
    fit: dict[str, Value] = Field(default_factory=dict)
    evaluation: dict[str, Value] = Field(default_factory=dict)
    trained_on: Data | None = None
    data: Data | None
    backbone: str | None
    network: str | None = None
    nfe: PositiveInt | None
    metric: Metric
    unit: Unit = "1"
    value: PositiveFloat
    printed: str
    bound: Bound = ""
    spread: PositiveFloat | None = None
    num_images: PositiveInt | None = None
    device: str | None = None
    flags: tuple[Flag, ...] = ()
    note: str = ""

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return len(self.printed.partition(".")[2])

    @model_validator(mode="after")
    def _check(self) -> Self:
        allowed = UNITS.get(self.metric, ("1",))
        if self.unit not in allowed:
            raise ValueError(f"{self.metric} is in {' or '.join(allowed)}, not in {self.unit!r}")
        return self


class _Row(BaseModel):
    """A printed row; what else it says is part of each of its values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    values: str
    columns: dict[str, list[Value]] | None = None


class _Part(Model):
    """Rows under the same heads, for example of one data set."""

    shared: dict[str, Value]
    columns: dict[str, list[Value]] = Field(default_factory=dict)
    rows: list[_Row] = Field(min_length=1)


class _File(Model):
    """Layout of a file."""

    about: str
    shared: dict[str, Value]
    parts: list[_Part]


def load_published(table: str | None = None) -> tuple[Published, ...]:
    """Every value of the paper's tables, in their order, row by row.

    Args:
        table: one of ``TABLES``, or a number without its letter for all its parts, ``2`` for
            ``2a``, ``2b`` and ``2c``; None for all. A table of results here is compared with ``2``:
            the others repeat some of its cells with other settings of training.

    Raises:
        SolverBenchError: for a table that the paper does not have or that holds no numbers.

    Source: arXiv 2510.17699; NFE of the teachers in table 2 from its tables 17 and 18.
    """
    chosen = [name for name in TABLES if table in (None, name, name.rstrip("abc"))]
    if not chosen:
        raise unknown_name("table", str(table), TABLES, ", ".join(TABLES))
    return tuple(entry for name in chosen for entry in _read(name))


def load_related() -> tuple[Published, ...]:
    """Numbers of other papers on few-step solvers, paper by paper.

    Source: a review of mid 2026; the arXiv number is in each ``source``.
    """
    return tuple(_read("related"))


def _read(name: str) -> Iterator[Published]:
    """The values of one file."""
    file = _File.model_validate_json((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    for part in file.parts:
        for row in part.rows:
            own = part.columns if row.columns is None else row.columns
            tokens = row.values.split()
            heads = [{key: own[key][i] for key in own} for i in range(_width(own, tokens))]
            for head, token in zip(heads, tokens, strict=True):
                said = _merged(file.shared, part.shared, head, row.model_extra or {})
                yield Published.model_validate(said | _number(token))


def _width(columns: Mapping[str, list[Value]], tokens: list[str]) -> int:
    """How many values a row has; every head must have as many."""
    found = {len(tokens), *(len(values) for values in columns.values())}
    if len(found) > 1:
        raise ValueError(f"heads and values differ in number: {' '.join(tokens)}")
    return len(tokens)


def _number(token: str) -> dict[str, Value]:
    """A printed number and what stands before it."""
    found = NUMBER.fullmatch(token)
    if found is None:
        raise ValueError(f"{token!r} is no printed number")
    return {"bound": found[1] or "", "printed": found[2], "value": float(found[2])}


def _merged(*layers: Mapping[str, Value]) -> dict[str, Value]:
    """The layers on top of each other; lists are joined, mappings too."""
    merged: dict[str, Value] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                merged[key] = below | value
            elif isinstance(below, list) and isinstance(value, list):
                merged[key] = below + value
            else:
                merged[key] = value
    return merged

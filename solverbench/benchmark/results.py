"""What came out, as data: one record a cell. No torch here, so tables are quick."""

from typing import Literal

from pydantic import Field

from solverbench.benchmark.spec import Model, RunSpec, Value

SCHEMA = 1  # raised when a field changes its meaning


class MetricFacts(Model):
    """What a table must know of a metric.

    Attributes:
        label: as shown, with the extractor, for example ``FD[cifar16]``.
        higher_is_better: direction.
        digits: decimals shown.
        about: one line: what is compared with what, by which convention.
    """

    label: str
    higher_is_better: bool
    digits: int = 2
    about: str = ""


class Cost(Model):
    """Measured, never declared. Seconds are wall clock, bytes are allocated or resident peaks.

    Attributes:
        nfe: network calls a sample, counted.
        network_rows: rows through the network a sample; 2 a call with guidance.
        seconds_per_image: sampling without decoding, median over batches.
        decode_seconds_per_image: decoding alone, median over batches.
        peak_bytes: while sampling, above what was there before. On the CPU a learned solver's is
            higher by what its fit left in the heap of the same process.
        fit_seconds: first to last iteration, with what a rule does to validation pairs after a
            round, without validation and checkpoints.
        fit_peak_bytes: while training, above what was there before.
        fit_iterations: optimiser steps done.
        fit_network_rows: rows through the network in the fit, validation included; of a schedule
            optimiser its warm-up.
        fit_pairs: teacher pairs used, training and validation.
        num_parameters: numbers that training can change.
    """

    nfe: int
    network_rows: float
    seconds_per_image: float
    decode_seconds_per_image: float
    peak_bytes: int
    fit_seconds: float = 0.0
    fit_peak_bytes: int = 0
    fit_iterations: int = 0
    fit_network_rows: int = 0
    fit_pairs: int = 0
    num_parameters: int = 0


class Provenance(Model):
    """Where a record comes from."""

    solverbench: str
    python: str
    torch: str
    device: str
    threads: int
    jobs: int = 1  # processes that ran side by side; seconds depend on it
    plugin: str = ""  # distribution that the solver came from
    commit: str
    weights_sha256: str
    reference_sha256: str
    created: str  # UTC, ISO 8601


class Result(Model):
    """The record of one cell.

    Attributes:
        schema_version: of this layout.
        spec: what was asked, complete.
        title: the solver as papers write it.
        status: ``ok``, ``failed`` or ``skipped``.
        reason: why not ok; empty when ok.
        metrics: name to finite value; a missing number is a missing key.
        metric_facts: for each of them.
        cost: None unless ok.
        provenance: where and when.
        conventions: every option of the solver as it was used, defaults included, and its times.
        flags: what a reader must know to compare, for example ``afs``.
    """

    schema_version: int = SCHEMA
    spec: RunSpec
    title: str
    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    metric_facts: dict[str, MetricFacts] = Field(default_factory=dict)
    cost: Cost | None = None
    provenance: Provenance
    conventions: dict[str, Value] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()

"""What came out, as data: one record a cell. No torch here, so tables are quick."""

from typing import Literal

from pydantic import Field

from solverbench.benchmark.spec import Model, RunSpec, Value

SCHEMA = 1  # raised when a field changes its meaning
# errors of values that are means of their influences
OF_A_MEAN = "sd over images / sqrt(M)"
OVER_ROWS = f"{OF_A_MEAN}, reference fixed"
LEVEL = 1.96  # standard errors of a difference beyond which two numbers are told apart

# what flags of a measurement mean; tables print the sentences
FLAGS: dict[str, str] = {
    "rank_deficient": "a covariance is singular; never beside values of many images",
    "no_se_statistics": "no error: the generated side is given by statistics, not by rows",
    "no_se_few_rows": "no error: it needs more generated rows than dimensions",
    "no_se_cut": "no error: in some directions one side does not vary and the other does",
    "no_se_subsets": "no error: the spread over subsets of the same rows is only a lower bound",
    "no_se": "no error is known for this metric; measure blocks of seeds",
    "unequal_numbers": "the sides have unequal numbers of rows, which moves the value",
    "capped": "identical images count as 100 dB",
}


class MetricFacts(Model):
    """What a table must know of a metric.

    Attributes:
        label: as shown, with the extractor, for example ``FD[cifar16]``.
        higher_is_better: direction.
        digits: decimals shown.
        about: one line: what is compared with what, by which convention.
        se_method: how the standard error was found; empty where there is none.
        num_generated: rows measured; 0 in records that do not say.
        num_reference: rows they were compared with, likewise.
        dim: of the features, or numbers an image, likewise.
        flags: what a reader must know to compare; ``FLAGS`` explains each.
        facts: conventions of this measurement, for example ``k`` or the ceiling of coverage.
    """

    label: str
    higher_is_better: bool
    digits: int = 2
    about: str = ""
    se_method: str = ""
    num_generated: int = 0
    num_reference: int = 0
    dim: int = 0
    flags: tuple[str, ...] = ()
    facts: dict[str, Value] = Field(default_factory=dict)


class Measurement(Model):
    """How images became features; equal for all rows of a table.

    Attributes:
        extractor: name.
        extractor_sha256: of its weights.
        resize: rule that brings images to its size.
        precision: of its weights and arithmetic.
        batch: images through it at once; None: all of them.
        quantisation: to 8 bits, by the convention of the backbone: ``edm`` or ``adm``.
        image_size: height and width of the images.
        reference: one line: which images they are compared with.
        seconds: of extraction, references and metrics together.
    """

    extractor: str
    extractor_sha256: str
    resize: str
    precision: str
    batch: int | None
    quantisation: str
    image_size: tuple[int, int]
    reference: str
    seconds: float


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
        errors: standard errors over images; a metric without one has no key.
        measurement: how images became features; None in records older than errors.
        influences_sha256: checksum of the file beside the record, which holds what each image adds
            to each metric; empty where there is none.
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
    errors: dict[str, float] = Field(default_factory=dict)
    measurement: Measurement | None = None
    influences_sha256: str = ""
    cost: Cost | None = None
    provenance: Provenance
    conventions: dict[str, Value] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()

"""What a record holds: numbers with their errors, conventions, or the reason of a failure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import registry, tensorfile
from solverbench.backbones.base import Backbone
from solverbench.benchmark.metrics.base import Metric
from solverbench.benchmark.provenance import provenance
from solverbench.benchmark.results import Measurement, MetricFacts, Result
from solverbench.benchmark.scheduling import schedule_title
from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError
from solverbench.images import Extractor, Features, Reference
from solverbench.solvers.tableau import Tableau

FORMAT = "solverbench-influence-1"
TRAINED = ("fit", "seed", "backbone", "parameters")  # known from the spec, or too long


@dataclass(frozen=True, eq=False)
class Numbers:
    """What metrics say of one set of samples, by their names.

    Attributes:
        metrics: values.
        errors: standard errors, where there are any.
        metric_facts: what tables must know.
        influences: (M,) float32, what each image adds, where it is known.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    metric_facts: dict[str, MetricFacts]
    influences: dict[str, Tensor]


def numbers_of(
    kinds: Mapping[str, Metric],
    generated: Features,
    references: Mapping[str, Reference],
    extractor: str,
) -> Numbers:
    """Measure samples.

    Args:
        kinds: metrics by their names.
        generated: features of the samples, in the order of their seeds.
        references: by what a metric is ``against``.
        extractor: name, for labels.

    Raises:
        ValueError: for features that cannot be compared.
    """
    found = Numbers({}, {}, {}, {})
    for name, metric in kinds.items():
        one = metric.measure(generated=generated, reference=references[metric.against])
        found.metrics[name] = one.value
        if one.se is not None:
            found.errors[name] = one.se
        if one.influence is not None:
            found.influences[name] = one.influence.float()
        found.metric_facts[name] = MetricFacts(
            label=metric.label(extractor),
            higher_is_better=metric.higher_is_better,
            digits=metric.digits,
            about=metric.about,
            se_method=one.se_method,
            num_generated=one.num_generated,
            num_reference=one.num_reference,
            dim=one.dim,
            flags=one.flags,
            facts=dict(one.facts),
        )
    return found


def write_influences(path: Path, influences: Mapping[str, Tensor]) -> str:
    """Store what each image adds to each metric, for paired tests.

    Args:
        path: beside the record.
        influences: (M,) by metric.

    Returns:
        Checksum of what was stored; empty where there is nothing to store.
    """
    if not influences:
        return ""
    facts = {"rows": "in the order of evaluation seeds"}
    return tensorfile.write(path, FORMAT, dict(influences), facts)


def measurement(
    backbone: Backbone, extractor: Extractor, example: Tensor, seconds: float
) -> Measurement:
    """How the images of a backbone became features.

    Args:
        backbone: whose images.
        extractor: that measured them.
        example: a final state (1, ...).
        seconds: that measuring took.
    """
    with torch.no_grad():
        height, width = backbone.decode(example.to(backbone.device)).shape[-2:]
    traits = extractor.traits
    return Measurement(
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        resize=traits.resize,
        precision=traits.precision,
        batch=traits.batch,
        quantisation=backbone.quantisation,
        image_size=(height, width),
        reference=extractor.reference().about,
        seconds=seconds,
    )


def conventions(tableau: Tableau) -> dict[str, Any]:
    """Every option of a solver as it was used, and its times."""
    meta = tableau.meta
    kept = dict(meta["options"])
    kept |= {key: meta[key] for key in ("t_max", "t_min", "output", "conversion")}
    kept |= meta["frame"]
    trained = meta.get("trained", {})
    kept |= {key: value for key, value in trained.items() if key not in TRAINED}
    return kept | {"t": tableau.nodes.tolist(), "t_eval": tableau.tau.tolist()}


def failed(spec: RunSpec, reason: str) -> Result:
    """The record of a cell that did not end."""
    kind = registry.solvers.get(spec.solver.name)
    return Result(
        spec=spec,
        title=(kind.title or kind.__name__) + schedule_title(spec),
        status="failed",
        reason=reason,
        provenance=provenance(torch.device("cpu"), "", ""),
    )


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, SolverBenchError) else f"{type(error).__name__}: {text}"

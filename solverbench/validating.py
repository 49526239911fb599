"""Re-running submitted tableaus here: an embedded backbone's own seeds, else a Gaussian problem."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.metrics.paired import per_image, rmse
from solverbench.benchmark.results import Result
from solverbench.benchmark.run import loaded
from solverbench.benchmark.spec import EXACT, Named, RunSpec, TeacherSpec
from solverbench.benchmark.store import influence_path
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.committed import Committed
from solverbench.leaderboards.tensors import read_tensors
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, VPLinear
from solverbench.solvers.tableau import Tableau, sample

EMBEDDED = ("cifar16", "digits")  # backbones that ship, so everybody samples alike
PAIRED = "rmse-teacher"
NUM_SEEDS, BATCH = 100, 50
# RMSE-T of an image, recorded against re-run: float32 sums in another order (batch, threads,
# processor, torch) move it by 3e-7 on cifar16, measured with torch 2.13 and 2.15 on two machines;
# 300 times that leaves room for a GPU. A last coefficient off by a thousandth moves it by 1e-3.
TOLERANCE = 1e-4
INEXACT = 6e-2  # where the network ran in bfloat16 or TF32: twice what bfloat16 did on digits
RTOL, ATOL = 1e-6, 1e-9  # of a table of a solver that learns nothing
MEANS = 4.0  # standard errors by which a mean over some images may miss that over all


@dataclass(frozen=True)
class Rerun:
    """What came of one record.

    Attributes:
        about: title and NFE.
        text: what was compared, or what is wrong; one line.
        passed: whether the record stands.
    """

    about: str
    text: str
    passed: bool


def rerun(found: Sequence[Committed], num: int = NUM_SEEDS) -> Iterator[Rerun]:
    """Sample with each tableau and compare with what its record says.

    Args:
        found: records of a submission, its files checked before.
        num: of the first evaluation seeds, at least 2.
    """
    for one in found:
        spec = one.result.spec
        about = f"{one.result.title}, {spec.backbone.name}, NFE {spec.nfe}, seed {spec.seed}"
        try:
            tableau = Tableau.load(one.tableau)
            run = _on_own if spec.backbone.name in EMBEDDED else _on_gaussian
            yield Rerun(about, run(one, tableau, min(num, spec.evaluation.num_images)), True)
        except (SolverBenchError, ValueError) as error:
            yield Rerun(about, f"{one.path}: {' '.join(str(error).split())}", False)


def _on_own(one: Committed, tableau: Tableau, num: int) -> str:
    """The record's own backbone and first evaluation seeds: RMSE to the teacher, image by image."""
    result, spec = one.result, one.result.spec
    backbone = _backbone(spec)
    if result.provenance.weights_sha256 != backbone.weights_sha256:
        raise SolverBenchError(
            f"made with weights {result.provenance.weights_sha256[:12] or 'unknown'}; those of "
            f"{spec.backbone.name} that ship are {backbone.weights_sha256[:12]}"
        )
    seeds = range(spec.evaluation.first_seed, spec.evaluation.first_seed + num)
    images = _images(backbone, tableau, seeds, _counted(result))
    said = [*_formulas(spec, backbone, tableau)]
    if PAIRED in result.metrics:
        teacher = _teacher(spec.teacher.model_dump_json(), _key(spec), seeds)
        said.append(_paired(one, per_image(images, teacher, rmse).numpy()))
    return "; ".join([f"{num} images", *said])


def _paired(one: Committed, values: Any) -> str:
    """RMSE-T of the re-run beside the record's: of each image where it is known, else the mean."""
    result, allowed = one.result, TOLERANCE if one.result.spec.network == EXACT else INEXACT
    if result.influences_sha256:
        rows = read_tensors(influence_path(one.path)).tensors.get(PAIRED)
        if rows is not None:
            gap = float(np.abs(rows[: len(values)].astype(np.float64) - values).max())
            if not gap <= allowed:
                raise SolverBenchError(
                    f"RMSE-T of an image is off by {gap:.1e} from its influences; {allowed:.0e} "
                    "is what rounding may do. The tableau is not the one that was measured"
                )
            return f"RMSE-T of each as recorded ({gap:.0e}, allowed {allowed:.0e})"
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    gap, limit = abs(float(values.mean()) - result.metrics[PAIRED]), MEANS * error + allowed
    if not gap <= limit:
        raise SolverBenchError(
            f"mean RMSE-T {values.mean():.4f} is {gap:.1e} from the record's "
            f"{result.metrics[PAIRED]:.4f}; {limit:.1e} is {MEANS:g} standard errors"
        )
    return f"mean RMSE-T {values.mean():.4f}, recorded {result.metrics[PAIRED]:.4f} of all"


def _formulas(spec: RunSpec, backbone: Backbone, tableau: Tableau) -> Iterator[str]:
    """Whether the formulas here give this table, where nothing was learned or optimised."""
    if spec.fit is not None or spec.schedule is not None:
        return
    if spec.solver.name not in registry.solvers.names():
        yield f"solver {spec.solver.name} is not installed, its formulas were not compared"
        return
    own = load_solver(spec.solver.name, backbone, spec.nfe, **spec.solver.options).tableau()
    if own.A.shape != tableau.A.shape or not torch.allclose(own.A, tableau.A, rtol=RTOL, atol=ATOL):
        raise SolverBenchError(
            f"the tableau is not that of {spec.solver.name}: its formulas give another here"
        )
    yield "table as the formulas give it"


def _on_gaussian(one: Committed, tableau: Tableau, num: int) -> str:
    """A mixture of Gaussians in the tableau's frame, where the backbone does not ship.

    It proves that the tableau samples, with the calls that were counted; no number of the record.
    """
    problem = load_backbone("gaussian", output=str(tableau.meta.get("output")))
    problem.schedule = _schedule(tableau.meta.get("frame"))
    problem.t_floor = 0.0
    images = _images(problem, tableau, range(num), _counted(one.result))
    size = float(images.square().mean()) ** 0.5
    return (
        f"{num} samples of a Gaussian problem, finite, RMS {size:.2f}"
        f"; {one.result.spec.backbone.name} does not ship, so its numbers were not re-run"
    )


def _schedule(facts: object) -> NoiseSchedule:
    """The noise schedule that a tableau was made for.

    Raises:
        SolverBenchError: where its facts name none.
    """
    match facts:
        case {"frame": "ve", "t_max": float() as t_max}:
            return VE(t_max=t_max)
        case {"frame": "vp-linear", "beta_0": float() as low, "beta_1": float() as high}:
            return VPLinear(low, high)
        case {"frame": "vp-discrete", "beta_first": float() as low, "beta_last": float() as high}:
            return VPDiscrete(low, high)
    raise SolverBenchError("the tableau names no frame that is known here")


@torch.no_grad()
def _images(backbone: Backbone, tableau: Tableau, seeds: range, nfe: int) -> Tensor:
    """Decoded images (M, C, H, W) of some seeds.

    Raises:
        SolverBenchError: where tableau and backbone do not fit, calls are not those that the
            record counted, or values are not finite.
    """
    parts = []
    with backbone.counting() as count:
        for start in range(0, len(seeds), BATCH):
            some = seeds[start : start + BATCH]
            states = sample(backbone, tableau, backbone.noise(some), backbone.condition(some))
            parts.append(backbone.decode(states).cpu())
    images = torch.cat(parts)
    if count.samples != nfe * len(seeds):
        raise SolverBenchError(
            f"made {count.samples / len(seeds):g} network calls a sample; the record has {nfe}"
        )
    if not bool(images.isfinite().all()):
        raise SolverBenchError("samples are not finite")
    return images


def _counted(result: Result) -> int:
    """Network calls a sample that a record counted."""
    return result.cost.nfe if result.cost else 0


def _key(spec: RunSpec) -> str:
    """The backbone of a cell as it is loaded here: on the CPU."""
    options = {key: value for key, value in spec.backbone.options.items() if key != "device"}
    return Named(name=spec.backbone.name, options=options).model_dump_json()


def _backbone(spec: RunSpec) -> Backbone:
    return loaded(_key(spec), EXACT)


@lru_cache(maxsize=4)
def _teacher(teacher: str, backbone: str, seeds: range) -> Tensor:
    """The teacher's images of some seeds, which the records of a submission share.

    Args:
        teacher: its ``TeacherSpec`` in JSON.
        backbone: its ``Named`` in JSON.
        seeds: of noise and conditions.
    """
    own, named = loaded(backbone, EXACT), TeacherSpec.model_validate_json(teacher)
    solver = load_solver(named.solver.name, own, named.nfe, **named.solver.options)
    return _images(own, solver.tableau().detach(), seeds, named.nfe)

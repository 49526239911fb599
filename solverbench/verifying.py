"""The golden numbers of metrics and solvers, on the machine of whoever asks.

``goldens/README.md`` says where each comes from; the tests read the same files. Only what a user
can call is called.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from solverbench.benchmark import metrics as m
from solverbench.benchmark.extractors.resizing import tf1_bilinear
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.lpips import compare, load_heads, prepare, scaled
from solverbench.benchmark.metrics.neighbours import Convention
from solverbench.errors import SolverBenchError
from solverbench.images import quantise_adm, quantise_edm
from solverbench.solvers.tableau import sample

GOLDENS = Path(__file__).with_name("goldens")
FLOAT64 = 1e-9  # of solvers: formulas rearranged
COUNTS = ("n_precision", "n_recall", "sum_density", "n_coverage")
CONVENTIONS: dict[Convention, str] = {"prdc": "strict", "kynkaanniemi": "nonstrict"}
FRAMES = {"ve": "ve", "vp": "vp-linear"}
GRIDS = {"logsnr": "logsnr", "edm_rho7": "edm", "time_uniform": "time-uniform"}
TWO_CALLS = ("heun", "dpm-solver-2")
Errors = Iterator[tuple[str, float]]  # name of a case, its error


class Golden(NamedTuple):
    """A set of features with the values that belong to it."""

    name: str
    generated: Tensor
    reference: Tensor
    values: dict[str, float]


class Run(NamedTuple):
    """A solver's name and options, and where its numbers are: frame, grid and steps, and a key."""

    solver: str
    options: dict[str, Any]
    run: str
    key: str


class Check(NamedTuple):
    """What is compared, in which unit, and how far it may be off."""

    what: str
    errors: Callable[[], Errors]
    tolerance: float
    unit: str


@dataclass(frozen=True)
class Verified:
    """What one check found.

    Attributes:
        what: was compared.
        cases: how many numbers or sets of numbers.
        error: the worst.
        tolerance: what it may be.
        unit: of both.
        worst: the case with that error.
        seconds: that it took.
    """

    what: str
    cases: int
    error: float
    tolerance: float
    unit: str
    worst: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there were cases, and none was off by more."""
        return self.cases > 0 and self.error <= self.tolerance


def verify() -> Iterator[Verified]:
    """Run all checks, one after another.

    Raises:
        SolverBenchError: where the golden numbers are not there.
    """
    for check in checks():
        start = time.perf_counter()
        # NaN is the largest error, and one is enough
        errors = [(e if e == e else math.inf, case) for case, e in check.errors()]
        error, worst = max(errors, default=(math.inf, "no case"))
        seconds = time.perf_counter() - start
        yield Verified(check.what, len(errors), error, check.tolerance, check.unit, worst, seconds)


def checks() -> list[Check]:
    """All of them; tolerances are those of ``goldens/metrics/README.md``."""
    found = [
        Check("Frechet distance", frechet, 1e-9, "of 1 + both traces"),
        Check("Frechet distance: error", frechet_error, 1e-6, "relative"),
        Check("neighbours: counts", partial(counts, "cpu"), 0, "counts"),
        Check("KID of subsets", kernel, 1e-6, "relative"),
        Check("KID of all rows", full_kernel, 1e-8, "of the value or 0.1"),
        Check("CMMD", cmmd, 1e-6, "relative"),
        Check("MIND", mind, 1e-3, "relative"),
        Check("LPIPS: preparation", lpips_images, 1e-5, "of pixels in [-1, 1]"),
        Check("8-bit rounding", rounding, 0, "grey levels"),
        Check("TensorFlow 1 resize", resizing, 2e-3, "grey levels"),
    ]
    if find_spec("lpips"):
        found.append(Check("LPIPS: head", lpips_heads, 1e-5, "relative"))
    if torch.cuda.is_available():
        found.append(Check("neighbours: counts, CUDA", partial(counts, "cuda"), 0, "counts"))
    for name, runs in solver_runs().items():
        found.append(Check(f"solver {name}", partial(solver, runs), FLOAT64, "relative"))
    return [*found, Check("solver gs, untrained", untrained_gs, FLOAT64, "relative")]


def frechet() -> Errors:
    """Distances from rows and from statistics."""
    for name, x, y, values in features():
        a, b = (m.Statistics().update(rows).moments() for rows in (x, y))
        size = 1 + float(a.sigma.trace() + b.sigma.trace())
        from_rows = m.frechet_distance(generated=x, reference=y)
        from_statistics = m.frechet_distance(generated=a, reference=b)
        for how, found in (("rows", from_rows), ("statistics", from_statistics)):
            yield f"{name}, {how}", abs(found.value - values["fd.exact"]) / size


def frechet_error() -> Errors:
    """Standard errors, where a set has one."""
    for name, x, y, values in having("fd.delta_se"):
        se = m.frechet_distance(generated=x, reference=y).se
        yield name, math.nan if se is None else relative(se, values["fd.delta_se"])


def counts(device: str) -> Errors:
    """Of precision, recall, density and coverage: both conventions, k 3 and 5, both types."""
    types = (torch.float32, torch.float64)
    for convention, k, dtype in product(CONVENTIONS, (3, 5), types):
        prefix = f"knn.k{k}.{CONVENTIONS[convention]}."
        for name, x, y, values in having(f"{prefix}n_precision"):
            x, y = x.to(device, dtype), y.to(device, dtype)
            shares = m.precision_recall(generated=x, reference=y, k=k, convention=convention)
            filled = m.density_coverage(generated=x, reference=y, k=k, convention=convention)
            found = shares.n_precision, shares.n_recall, filled.sum_density, filled.n_coverage
            gaps = [abs(values[prefix + a] - b) for a, b in zip(COUNTS, found, strict=True)]
            yield f"{name}, k={k}, {convention}, {str(dtype)[6:]}", max(gaps)


def kernel() -> Errors:
    """Means and deviations over the subsets that torch-fidelity draws."""
    for name, x, y, values in having("kid.mean"):
        subsets, size = (int(values[f"kid.{key}"]) for key in ("subsets", "subset_size"))
        found = m.kernel_distance(generated=x, reference=y, subsets=subsets, subset_size=size)
        yield f"{name}, mean", relative(found.value, values["kid.mean"])
        yield f"{name}, deviation", relative(found.std, values["kid.std"])


def full_kernel() -> Errors:
    """The estimator on all rows."""
    for name, x, y, values in having("kid.full_unbiased"):
        wanted = values["kid.full_unbiased"]
        found = m.full_kernel_distance(generated=x, reference=y).value
        yield name, abs(found - wanted) / max(0.1, abs(wanted))


def cmmd() -> Errors:
    """Of rows scaled to unit length."""
    for name, x, y, values in having("cmmd.biased_x1000"):
        found = m.cmmd(generated=x, reference=y).value
        yield name, relative(found, values["cmmd.biased_x1000"])


def mind() -> Errors:
    """With the random directions of torch-fidelity."""
    for name, x, y, values in having("mind.1000proj_seed2020"):
        found = m.mind(generated=x, reference=y).value
        yield name, relative(found, values["mind.1000proj_seed2020"])


def lpips_images() -> Errors:
    """Resizing, clipping and scaling."""
    data = arrays("lpips")
    index = data["pre.index"]
    made = prepare(data["pre.input"])
    for key, images in (("pre.resized_clipped_at", made), ("pre.scaled_at", scaled(made))):
        part = images[..., index[:, None], index[None, :]]
        yield key.removeprefix("pre."), float((part - data[key]).abs().max())


def lpips_heads() -> Errors:
    """The weighted difference of given activations, layer by layer and in total."""
    data, heads = arrays("lpips"), load_heads()
    parts = ("feat0", "feat1", "layer")
    ours, theirs, layers = ([data[f"head.{part}.{i}"] for i in range(len(heads))] for part in parts)
    for i, (a, b, head, wanted) in enumerate(zip(ours, theirs, heads, layers, strict=True)):
        yield f"layer {i}", gap(compare([a], [b], [head]), wanted)
    yield "value", gap(compare(ours, theirs, heads), data["head.value"])


def rounding() -> Errors:
    """Both rules."""
    data = arrays("metrics/quantise")
    for key, quantise in (("edm", quantise_edm), ("adm", quantise_adm)):
        yield key, float((quantise(data["x"]).int() - data[key].int()).abs().max())


def resizing() -> Errors:
    """Up, down and to the same size."""
    data = arrays("metrics/resize_tf1")
    for case in sorted({key.partition(".")[0] for key in data}):
        height, width = (int(n) for n in data[f"{case}.size"].expand(2))
        found = tf1_bilinear(data[f"{case}.input"].float(), height, width)
        part = found[:, :, data[f"{case}.rows"]][:, :, :, data[f"{case}.cols"]]
        yield case, float((part - data[f"{case}.output_at"]).abs().max())


def solver(runs: list[Run]) -> Errors:
    """Samples of a mixture of three Gaussians whose denoiser is a formula."""
    data = vectors()
    mixture = {key: torch.tensor(v, dtype=torch.float64) for key, v in data["mixture"].items()}
    mixture["means"] = mixture["means"][:, None, None, None]
    noise = torch.tensor(data["z"], dtype=torch.float64)[:, None, None, None]
    for name, options, run, key in runs:
        frame, grid, num = run.split("/")
        backbone = load_backbone("gaussian", frame=FRAMES[frame], **mixture)
        nfe = int(num) * (2 if name in TWO_CALLS else 1)
        found = load_solver(name, backbone, nfe, schedule=GRIDS[grid], **options)
        wanted = torch.tensor(data["runs"][run][key], dtype=torch.float64)
        images = sample(backbone, found.tableau(), noise)
        yield f"{run}, {key}", gap(images.flatten(), wanted)


def untrained_gs() -> Errors:
    """Samples of GS before any training, of a mixture of four Gaussians in pixels."""
    data, problem = arrays("gs_zero"), arrays("problem_edm")
    mixture = {key: problem[key] for key in ("means", "weights", "stds")}
    backbone = load_backbone("gaussian", **mixture, frame="vp-linear", t_min=1e-3)
    for key in (key for key in data if key.startswith("edm") and key.endswith("__final")):
        nfe = int(key.split("__")[1].removeprefix("nfe"))
        images = sample(backbone, load_solver("gs", backbone, nfe).tableau(), problem["x_T"])
        yield f"{nfe} NFE", gap(images, data[key])


def solver_runs() -> dict[str, list[Run]]:
    """The runs of each solver."""
    found: dict[str, list[Run]] = {}
    for run, values in vectors()["runs"].items():
        for key in values:
            name, options = name_of(key)
            found.setdefault(name, []).append(Run(name, options, run, key))
    return dict(sorted(found.items()))


def name_of(key: str) -> tuple[str, dict[str, Any]]:
    """The registered name and the options behind a key such as ``unipc_3_bh1``."""
    if key == "heun_always_corrected":
        return "heun", {"final_euler": False}
    if key.startswith("unipc"):
        family, order, variant = key.split("_")
        return f"{family}-{order}", {"variant": variant}
    name = key.removesuffix("_no_lower_final").replace("_", "-")
    if name.startswith("dpmpp"):
        return name, {"lower_order_final": not key.endswith("_no_lower_final")}
    return name.replace("-variable", "").replace("-tab", ""), {}


def features() -> Iterator[Golden]:
    """All sets of features."""
    for path in sorted((GOLDENS / "metrics").glob("*.npz")):
        data = arrays(f"metrics/{path.stem}")
        if "real" in data:
            values = {key: float(value) for key, value in data.items() if value.ndim == 0}
            yield Golden(path.stem, data["fake"], data["real"], values)


def having(key: str) -> Iterator[Golden]:
    """Sets that hold a value."""
    return (golden for golden in features() if key in golden.values)


@cache
def arrays(name: str) -> dict[str, Tensor]:
    """The arrays of a golden file.

    Raises:
        SolverBenchError: where it is not there.
    """
    path = GOLDENS / f"{name}.npz"
    try:
        with np.load(path) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise SolverBenchError(f"{path} cannot be read; reinstall solverbench") from error


@cache
def vectors() -> dict[str, Any]:
    """The numbers of the solvers on a line.

    Raises:
        SolverBenchError: where they are not there.
    """
    path = GOLDENS / "solvers.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SolverBenchError(f"{path} cannot be read; reinstall solverbench") from error
    return found


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted entry."""
    return float((found.detach() - wanted).abs().max() / wanted.abs().max())


def relative(found: float, wanted: float) -> float:
    """Difference in shares of the wanted value."""
    return abs(found - wanted) / abs(wanted)

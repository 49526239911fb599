"""What a matrix of cells will take, about: time, memory and disk, before anything slow starts.

Time is work over speed. The work is counted from the specs alone: evaluations of the network with
and without gradients, pairs that a loss compares, pairs that a discriminator sees, decoded images.
A published model says what an evaluation costs (its ``price``); the speed is then one assumption,
or measured where the model is loaded. Any other model is loaded and its evaluations are timed.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark.features import IN_MEMORY, keeps_images
from solverbench.benchmark.launch import BACKWARD_COST, THREADS
from solverbench.benchmark.load import option_hints
from solverbench.benchmark.meter import stopwatch
from solverbench.benchmark.rows import stays
from solverbench.benchmark.run import fit_seeds, needs_teacher
from solverbench.benchmark.spec import RunSpec

H100 = 60e12  # operations a second that the times of arXiv 2510.17699, table 14, come to
VGG = 30.7 / 224**2  # GFLOP a pixel of one pass of the trunk of LPIPS
VGG_MB = 73.5 / 224**2  # kept a pixel for the backward pass
SIDE = 224  # pixels that distance lpips resizes to
JUDGES = {32: (14.1, 79.0), 64: (26.1, 201.0)}  # R3GAN by side of the state: GFLOP, MB kept
JUDGE_PASSES = (
    50  # forward passes that a pair costs: 15 with penalties, at the slow speed of groups
)
PARAMETER = 4  # bytes
GRADIENT = 1 + BACKWARD_COST  # of an evaluation with gradients, in those without; weights frozen
SHORT = 1.0  # seconds of a probe
SMALL = 5_000_000  # parameters of a network that is probed with more than a row on the CPU
MB = 1e6


class Work(NamedTuple):
    """What some cells ask for, in counts.

    Attributes:
        teacher: evaluations for the teacher's samples.
        sampling: evaluations for the students' samples that are measured.
        training: evaluations with gradients.
        checking: evaluations without, inside fits: validation, a discriminator's fakes, second
            looks of relaxed losses, what ``memory: recompute`` computes again.
        images: decoded to be measured.
        passes: of distances over a sample, by distance: forward, and backward where it trains.
        judged: pairs of a discriminator's step.
    """

    teacher: int
    sampling: int
    training: int
    checking: int
    images: int
    passes: dict[str, int]
    judged: int

    @property
    def forward(self) -> int:
        """Evaluations without gradients."""
        return self.teacher + self.sampling + self.checking


class Rates(NamedTuple):
    """What one of each costs.

    Attributes:
        forward: seconds of an evaluation of a sample without gradients.
        training: seconds of one with them.
        passed: seconds of a pass of a distance, by distance; 0 where it is not known.
        judged: seconds of a pair of a discriminator's step.
        decoded: seconds of a decoded image.
        fixed_bytes: of weights.
        kept_bytes: of activations of an evaluation of a sample.
        compared_bytes: of activations of a pair in a distance, by distance.
        judge_bytes: the same in a discriminator.
        state: shape (C, H, W) that solvers integrate.
        image: shape (C, H, W) of a decoded image.
        parallel: whether processes side by side make it faster.
        basis: assumptions, one line.
    """

    forward: float
    training: float
    passed: dict[str, float]
    judged: float
    decoded: float
    fixed_bytes: float
    kept_bytes: float
    compared_bytes: dict[str, float]
    judge_bytes: float
    state: tuple[int, ...]
    image: tuple[int, ...]
    parallel: bool
    basis: str


@dataclass(frozen=True)
class Estimate:
    """What a run takes, about.

    Attributes:
        hours: of all cells, on one device or on all processes together.
        network_bytes: largest memory of the device while a fit trains, as the recipe has it.
        recompute_bytes: the same with ``fit.memory: recompute``.
        host_bytes: states, and images that a metric reads, held at once when a cell is measured.
        disk_bytes: teacher sets and samples of a cell.
        basis: assumptions, one line.
    """

    hours: float
    network_bytes: float
    recompute_bytes: float
    host_bytes: float
    disk_bytes: float
    basis: str

    def lines(self) -> list[str]:
        """For people."""
        less = f"; {size_of(self.recompute_bytes)} with --set fit.memory=recompute"
        fit = [
            f"  memory  about {size_of(self.network_bytes)} of the device at the peak of training"
            f"{less if self.recompute_bytes < self.network_bytes else ''}"
        ]
        return [
            f"  time    about {duration_of(self.hours)}",
            *(fit if self.network_bytes else []),
            f"  host    about {size_of(self.host_bytes)} of memory while a cell is measured",
            f"  disk    about {size_of(self.disk_bytes)} of teacher sets and samples",
            f"  from    {self.basis}",
        ]


def work_of(specs: Sequence[RunSpec]) -> Work:
    """Count the work of cells; teacher sets that they share count once."""
    shared: dict[tuple[object, ...], int] = {}
    passes: dict[str, int] = {}
    sampling = training = checking = judged = 0
    for spec in specs:
        for key, samples in _teacher_sets(spec).items():
            shared[key] = samples * spec.teacher.nfe
        if not spec.is_teacher:
            sampling += spec.evaluation.num_images * spec.nfe
        if spec.fit is None:
            continue
        fit = spec.fit
        pairs = fit.iterations * fit.batch
        validated = fit.validation_size * (2 + fit.iterations // fit.validate_every)
        again = 1 - _stored(fit.memory, spec.nfe) / spec.nfe, _plays(spec), _moves(spec)
        training += pairs * spec.nfe
        checking += round((validated + sum(again) * pairs) * spec.nfe)
        judged += pairs if _plays(spec) else 0
        looks = 5 if _moves(spec) else 3  # student, teacher, way back; then two again
        passes[fit.distance] = passes.get(fit.distance, 0) + looks * pairs + 2 * validated
    images = sum(spec.evaluation.num_images for spec in specs)
    return Work(sum(shared.values()), sampling, training, checking, images, passes, judged)


def _stored(memory: str | int, nfe: int) -> int:
    """Calls whose activations are kept."""
    if isinstance(memory, int):
        return min(memory, nfe)
    return nfe if memory == "store" else 0


def _plays(spec: RunSpec) -> bool:
    """Whether a solver is trained against a discriminator: it has an option of that name."""
    return "discriminator" in option_hints(registry.solvers.get(spec.solver.name), skip=2)


def _moves(spec: RunSpec) -> bool:
    """Whether training moves the noise of pairs within a radius, and looks at each pair twice."""
    return "radius" in option_hints(registry.solvers.get(spec.solver.name), skip=2)


def _teacher_sets(spec: RunSpec) -> dict[tuple[object, ...], int]:
    """Samples of the teacher that a cell needs, by what tells sets apart."""
    evaluation = spec.evaluation
    seeds = list(fit_seeds(spec)) if spec.fit else []
    if spec.is_teacher or needs_teacher(spec):
        end = evaluation.first_seed + evaluation.num_images
        seeds.append(range(evaluation.first_seed, end))
    teacher = spec.teacher.model_dump_json()
    return {(teacher, s.start, s.stop): len(s) for s in seeds}


def price_rates(price: Any, measured: Rates | None = None) -> Rates:
    """Costs of a published model.

    Args:
        price: what it says of itself, a ``Price`` of ``backbones/published.py``.
        measured: of the loaded model; its speed stands for that of an H100.
    """
    call = price.rows * price.gflop * 1e9
    speed = call / measured.forward if measured else H100
    side, pixels = price.image[-1], SIDE**2
    seen = {"lpips": pixels, "lpips-native": side**2}
    seen |= {f"{name}-bf16": num for name, num in seen.items()}
    judge, judge_mb = JUDGES.get(price.state[-1], (0.0, 0.0))
    whose = "measured here" if measured else "what the paper's times on one H100 come to"
    return Rates(
        forward=call / speed,
        training=GRADIENT * call / speed,
        passed={k: (VGG * n + price.decode_gflop) * 1e9 / speed for k, n in seen.items()},
        judged=JUDGE_PASSES * judge * 1e9 / speed,
        decoded=price.decode_gflop * 1e9 / speed,
        fixed_bytes=PARAMETER * price.parameters,
        kept_bytes=price.rows * price.kept_mb * MB,
        compared_bytes={k: (VGG_MB * n + price.decode_mb) * MB for k, n in seen.items()},
        judge_bytes=2 * judge_mb * MB,
        state=price.state,
        image=price.image,
        parallel=False,
        basis=f"{call / 1e9:,.0f} GFLOP an evaluation, counted, at {speed / 1e12:.3g} TFLOP/s, "
        f"{whose}; float32; metrics and schedule optimisers left out",
    )


def measured_rates(backbone: Backbone, seconds: float = SHORT) -> Rates:
    """Costs of a loaded backbone, timed for about a second; a distance's are not known.

    Args:
        backbone: on any device.
        seconds: at least; one evaluation more at most.
    """
    parameters = sum(p.numel() for p in backbone.network.parameters())
    on_cpu = backbone.device.type == "cpu"
    num = 1 if on_cpu and parameters > SMALL else 16
    noise, t = backbone.noise(range(num)), torch.tensor(backbone.schedule.t_max).double()
    kept = _kept(backbone, noise[:1], t)  # before the clock: a first call sets things up
    each = _timed(backbone, noise, t, seconds) / num
    with torch.no_grad():
        image = backbone.decode(noise[:1])
    return Rates(
        forward=each,
        training=GRADIENT * each,
        passed={},
        judged=0.0,
        decoded=0.0,
        fixed_bytes=PARAMETER * parameters,
        kept_bytes=kept,
        compared_bytes={},
        judge_bytes=0.0,
        state=tuple(backbone.state_shape),
        image=tuple(image.shape[1:]),
        parallel=on_cpu,
        basis=f"{1000 * each:.3g} ms an evaluation, measured on {backbone.device}, {GRADIENT:g} "
        "times that with gradients; losses, discriminators and metrics left out",
    )


def _timed(backbone: Backbone, noise: Tensor, t: Tensor, seconds: float) -> float:
    """Median seconds of a call; on one thread, as workers have it."""
    spent: list[float] = []
    condition = backbone.condition(range(len(noise)))
    before, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(THREADS)
    try:
        while not spent or time.perf_counter() - start < seconds:
            with torch.no_grad(), stopwatch(backbone.device, spent):
                backbone.evaluate(noise, t, condition)
    finally:
        torch.set_num_threads(before)
    return statistics.median(spent)


def _kept(backbone: Backbone, noise: Tensor, t: Tensor) -> int:
    """Bytes that autograd keeps of one evaluation, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in backbone.network.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps places from being used twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.evaluate(noise.clone().requires_grad_(True), t, backbone.condition([0]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimate(specs: Sequence[RunSpec], rates: Rates, jobs: int = 1) -> Estimate:
    """What cells take.

    Args:
        specs: the cells.
        rates: from ``price_rates`` or ``measured_rates``.
        jobs: processes side by side.
    """
    work = work_of(specs)
    seconds = work.forward * rates.forward + work.training * rates.training
    seconds += work.judged * rates.judged + work.images * rates.decoded
    seconds += sum(num * rates.passed.get(key, 0.0) for key, num in work.passes.items())
    peaks = [[_peak(s, rates, memory) for s in specs] for memory in (None, "recompute")]
    own, recompute = (max(peak, default=0.0) for peak in peaks)
    images = [_held(s, rates) for s in specs]
    states = PARAMETER * math.prod(rates.state)
    teacher = {key: num for s in specs for key, num in _teacher_sets(s).items()}
    once = max((s.evaluation.num_images for s in specs), default=0)
    side = max(1, min(jobs, len(specs)) if rates.parallel else 1)
    return Estimate(
        hours=seconds / side / 3600,
        network_bytes=own,
        recompute_bytes=recompute,
        host_bytes=max(images, default=0.0),
        disk_bytes=states * (sum(teacher.values()) + once),
        basis=rates.basis,
    )


def _peak(spec: RunSpec, rates: Rates, memory: str | None) -> float:
    """Bytes on the device while a cell trains; 0 for one that does not."""
    if spec.fit is None:
        return 0.0
    calls = max(1, _stored(memory or spec.fit.memory, spec.nfe))
    judge = rates.judge_bytes if _plays(spec) else 0.0
    each = calls * rates.kept_bytes + rates.compared_bytes.get(spec.fit.distance, 0.0) + judge
    peak = rates.fixed_bytes + (spec.fit.micro_batch or spec.fit.batch) * each
    return min(peak, spec.fit.max_memory or peak)


def _held(spec: RunSpec, rates: Rates) -> float:
    """Bytes of states, noise and images on the host while a cell is measured, but for files."""
    sets = 2 if needs_teacher(spec) and not spec.is_teacher else 1
    num, images = spec.evaluation.num_images, 0
    states = 2 * PARAMETER * num * math.prod(rates.state) if stays(num, rates.state) else 0
    if keeps_images(spec.evaluation.metrics):
        images = min(PARAMETER * num * math.prod(rates.image), IN_MEMORY)
    return float(sets * (images + states))


def size_of(num: float) -> str:
    """Bytes for people."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if num >= one:
            return f"{num / one:,.3g} {unit}"
    return f"{num / 1e3:,.3g} kB"


def duration_of(hours: float) -> str:
    """Hours for people."""
    for unit, one in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * one:
            return (
                f"{hours / one:,.2g} {unit}" if hours / one < 100 else f"{hours / one:,.0f} {unit}"
            )
    return f"{hours * 3600:,.2g} seconds"

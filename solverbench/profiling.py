"""Where the time and the bytes of one step go: of a sampling, or of a training iteration."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import is_learnable, load_backbone, load_solver
from solverbench.benchmark.meter import stopwatch
from solverbench.benchmark.run import extractor_of
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec, Named
from solverbench.benchmark.training import Distance, Fit, Lesson, check_fit
from solverbench.errors import SolverBenchError
from solverbench.images import Extractor
from solverbench.solvers.base import LearnableSolver, Solver
from solverbench.solvers.tableau import check_match, sample
from solverbench.traces import Stage, recorded, stages_of

WARMUP = 2  # steps before the first that counts: lazy loading, the optimiser's state
PAUSES = ("warm_start", "disc_warmup")  # options of solvers with an adversary: it waits so long
ON_CUDA = (
    "a GPU works behind the program: ms of a stage are those of handing it work, unless the "
    "variable CUDA_LAUNCH_BLOCKING is 1"
)


@dataclass(frozen=True)
class Job:
    """What to profile.

    Attributes:
        solver: plugin and options.
        backbone: plugin and options.
        nfe: network evaluations a sample.
        train: one iteration of the solver's training rule; otherwise one sampling.
        batch: samples a step.
        memory: of the training, as in ``FitSpec``.
        distance: of the training.
        steps: that count; figures are those of the median one.
    """

    solver: Named
    backbone: Named
    nfe: int
    train: bool
    batch: int
    memory: str | int = "store"
    distance: str = "l2"
    steps: int = 5


@dataclass(frozen=True)
class Profile:
    """A profiled step.

    Attributes:
        about: what was profiled, one line.
        stages: of the median step, in the order of ``STAGES``, then ``other``.
        calls: network evaluations a step, recomputed ones and those of fakes counted.
        network_rows: batch rows through the network.
        bound: what the bare network does in ``bound_seconds``.
        bound_seconds: median of the bare network's passes.
        plain_seconds: median of the step without a profiler.
        ratio: median of step over bare network, run in turns without a profiler.
        slower: the profiled step over the plain one.
        notes: what a reader must know.
        trace: of the same step, for ``chrome://tracing``.
    """

    about: str
    stages: list[Stage]
    calls: int
    network_rows: int
    bound: str
    bound_seconds: float
    plain_seconds: float
    ratio: float
    slower: float
    notes: list[str]
    trace: dict[str, Any] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The whole step, with the profiler."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def kept_bytes(self) -> int:
        """What the step leaves, bytes of tensors."""
        return sum(stage.kept_bytes for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of tensors, above those before the step."""
        return max(stage.peak_bytes for stage in self.stages)

    def record(self) -> dict[str, Any]:
        """All figures as JSON values, without the trace."""
        data = asdict(self)
        del data["trace"]
        names = ("seconds", "kept_bytes", "peak_bytes")
        return data | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Task:
    """A step that is ready to be run.

    Attributes:
        backbone: the network.
        noise: of one batch, (B, C, H, W).
        condition: of that batch.
        work: makes one step.
        about: one line.
        notes: what a reader must know.
    """

    backbone: Backbone
    noise: Tensor
    condition: Any
    work: Callable[[], object]
    about: str
    notes: list[str]


def prepared(job: Job) -> Task:
    """Load and check everything; no step is made.

    Raises:
        SolverBenchError: for what a user can mend.
    """
    if job.train and not is_learnable(job.solver.name):
        raise SolverBenchError(f"solver {job.solver.name} learns nothing; leave --train away")
    registry.solvers.get(job.solver.name)
    if job.train:
        registry.distances.get(job.distance)
    backbone = load_backbone(job.backbone.name, **job.backbone.options)
    options = dict(job.solver.options)
    dropped = [name for name in PAUSES if job.train and options.pop(name, 0)]
    torch.manual_seed(0)
    solver = load_solver(job.solver.name, backbone, job.nfe, **options)
    check_match(backbone, solver.tableau().detach(), backbone.noise([0]))
    notes = [f"{' and '.join(dropped)} left out: the adversary plays at once"] if dropped else []
    if backbone.device.type == "cuda":
        notes.append(ON_CUDA)
    title = f"{solver.title or job.solver.name} on {backbone.name}, NFE {job.nfe}"
    make = _training if job.train else _sampling
    return make(job, backbone, solver, title, notes)


def _sampling(job: Job, backbone: Backbone, solver: Solver, title: str, notes: list[str]) -> Task:
    """One sampling of a batch; the table is made beforehand, as a run makes it once."""
    seeds = range(job.batch)
    noise, condition = backbone.noise(seeds), backbone.condition(seeds)
    tableau = solver.tableau().detach()

    @torch.no_grad()
    def work() -> object:
        return sample(backbone, tableau, noise, condition)

    about = f"{title}: one sampling, batch {job.batch}"
    return Task(backbone, noise, condition, work, about, notes)


def _training(job: Job, backbone: Backbone, solver: Solver, title: str, notes: list[str]) -> Task:
    """One iteration of the solver's own rule, on noise in place of the teacher's samples."""
    assert isinstance(solver, LearnableSolver)
    values = {"batch": job.batch, "train_size": 2 * job.batch, "validation_size": 1}
    spec = FitSpec.model_validate(values | {"memory": job.memory, "distance": job.distance})
    distance: Distance = registry.distances.get(job.distance)(backbone, _extractor(backbone))
    check_fit(spec, backbone, solver, distance)
    train, validation = _pairs(backbone, 2 * job.batch), _pairs(backbone, 1)
    fit = Fit(solver, Lesson(spec, 0, backbone, distance, train, validation))
    about = (
        f"{title}: one training iteration, batch {job.batch}, memory {job.memory}, "
        f"distance {job.distance}"
    )
    notes.append("targets are noise in place of the teacher's samples: the time is the same")
    noise, condition = train.noise[: job.batch].to(backbone.device), train.condition
    first = None if condition is None else condition[: job.batch]
    return Task(backbone, noise, first, fit.advance, about, notes)


def _pairs(backbone: Backbone, num: int) -> Samples:
    """Pairs whose targets are the noise of other seeds."""
    seeds = range(num)
    noise, targets = backbone.noise(seeds).cpu(), backbone.noise(range(num, 2 * num)).cpu()
    return Samples(seeds, noise, targets, backbone.condition(seeds), 0.0, 0, 0.0, 0)


def _extractor(backbone: Backbone) -> Extractor | None:
    """The backbone's extractor; None where it cannot run here: most distances need none."""
    try:
        return extractor_of(backbone)
    except SolverBenchError:
        return None


def measured(job: Job, task: Task) -> Profile:
    """Warm up, then take turns: bare network, the step alone, the step with the profiler."""
    backbone = task.backbone
    with backbone.counting() as count:
        task.work()
    bare = Bare(task)
    pairs = job.nfe if job.train else 0
    passes = count.rows / bare.rows - pairs
    for _ in range(WARMUP):
        bare.seconds(pairs, passes)
        task.work()
    recorded(task.work, backbone.device)
    base, plain, traces = list[float](), list[float](), list[dict[str, Any]]()
    for _ in range(job.steps):
        base.append(bare.seconds(pairs, passes))
        with stopwatch(backbone.device, plain):
            task.work()
        traces.append(recorded(task.work, backbone.device))
    found = [(stages_of(trace, backbone.device.type), trace) for trace in traces]
    found.sort(key=lambda pair: _total(pair[0]))
    stages, trace = found[(len(found) - 1) // 2]
    return Profile(
        about=task.about,
        stages=stages,
        calls=count.calls,
        network_rows=count.rows,
        bound=_bound(pairs, passes),
        bound_seconds=statistics.median(base),
        plain_seconds=statistics.median(plain),
        ratio=statistics.median(p / b for p, b in zip(plain, base, strict=True)),
        slower=_total(stages) / statistics.median(plain),
        notes=task.notes,
        trace=trace,
    )


def _total(stages: list[Stage]) -> float:
    return sum(stage.seconds for stage in stages)


def _bound(pairs: int, passes: float) -> str:
    """Words for the passes of the bare network."""
    parts = [f"{pairs} forward with backward to the input"] if pairs else []
    parts += [f"{passes:g} forward alone"] if passes else []
    return ", ".join(parts)


class Bare:
    """The network itself, on the tensors that one evaluation of a batch hands to it.

    Attributes:
        rows: through the network in such an evaluation; two a sample where it is guided.
    """

    def __init__(self, task: Task) -> None:
        self.network, self.device = task.backbone.network, task.backbone.device
        self.inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def seen(module: object, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.inputs.append((args, named))

        handle = self.network.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            with torch.no_grad():
                t = torch.tensor(task.backbone.schedule.t_max, dtype=torch.float64)
                task.backbone.evaluate(task.noise, t, task.condition)
        finally:
            handle.remove()
        self.rows = sum(len(args[0]) for args, _ in self.inputs)

    def seconds(self, pairs: int, passes: float) -> float:
        """Seconds of so many passes forward and backward, and of so many forward alone.

        A part of a pass, where a step uses batches of another size, counts by its rows.
        """
        back, ahead, whole = list[float](), list[float](), max(1, round(passes))
        with stopwatch(self.device, back):
            for _ in range(pairs):
                self.backward()
        if not passes:
            return back[0]
        with stopwatch(self.device, ahead), torch.no_grad():
            for _ in range(whole):
                self.forward()
        return back[0] + ahead[0] * passes / whole

    def forward(self) -> None:
        """The passes of one evaluation."""
        for args, named in self.inputs:
            self.network(*args, **named)

    def backward(self) -> None:
        """The same, and the gradient of their sum in the network's input."""
        for (x, *rest), named in self.inputs:
            x = x.detach().requires_grad_()
            output = self.network(x, *rest, **named)
            tensor: Tensor = getattr(output, "sample", output)  # diffusers wraps it
            torch.autograd.grad(tensor.sum(), x)

"""Training and sampling on a GPU: seconds and peak memory of each setting, in one run.

    pip install . && python experiments/gpu_training.py --out figures
    python experiments/gpu_training.py --device cpu --small --out figures    # does it run at all

EDM networks of the published sizes with random weights, batch 24, LPIPS at 224 pixels on a VGG16
with random weights: the arithmetic of tables 14 and 15 of arXiv 2510.17699 without its files.
GAS plays against a discriminator of the published size. Every figure is a line of
``figures.jsonl`` as soon as it is known; ``figures.md`` shows them beside the printed ones.
"""

import gc
import itertools
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.edm import EDM
from solverbench.backbones.edm_files import FORMAT, Facts
from solverbench.backbones.edm_preconditioning import build
from solverbench.benchmark.acceleration import accelerated, facts_of
from solverbench.benchmark.distances import L2
from solverbench.benchmark.load import check_device
from solverbench.benchmark.lpips import LPIPS, STAGES, Trunk
from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import EXACT, FAST, FitSpec, NetworkSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.errors import SolverBenchError
from solverbench.files import write_text
from solverbench.solvers.base import LearnableSolver, Setting
from solverbench.solvers.gas import GAS
from solverbench.solvers.gs import GS
from solverbench.solvers.tableau import Memory, sample

WARM, ROUNDS = 3, 8
SOLVERS: dict[str, type[LearnableSolver]] = {"gs": GS, "gas": GAS}
SETTINGS = {
    "exact": EXACT,
    "fast": FAST,
    "tf32": NetworkSpec(channels_last=True, cudnn_benchmark=True, tf32=True),
    "bf16": NetworkSpec(channels_last=True, cudnn_benchmark=True, autocast="bfloat16"),
    "compile": NetworkSpec(channels_last=True, compile=True),
}
PAPER_MINUTES = {  # of 10,000 iterations of 24 on an H100; table 14a
    ("cifar10", "gs"): {4: 30, 6: 40, 8: 50, 10: 60},
    ("cifar10", "gas"): {4: 85, 6: 100, 8: 115, 10: 130},
    ("64", "gs"): {4: 40, 6: 60, 8: 80, 10: 95},
    ("64", "gas"): {4: 160, 6: 185, 8: 210, 10: 240},
}


@dataclass(frozen=True)
class Shape:
    """A network to time.

    Attributes:
        name: for the tables.
        side: pixels a side.
        channels: of the finest level.
        mult: of each level.
        blocks: of each level.
        nfes: what is timed.
        batch: pairs a step.
    """

    name: str
    side: int
    channels: int
    mult: tuple[int, ...]
    blocks: int
    nfes: tuple[int, ...]
    batch: int = 24

    def write(self, path: Path) -> int:
        """Random weights of unit gain as a file of the backbone ``edm``; how many there are."""
        keywords: dict[str, Any] = {
            "img_resolution": self.side,
            "img_channels": 3,
            "label_dim": 0,
            "model_type": "SongUNet",
            "model_channels": self.channels,
            "channel_mult": list(self.mult),
            "num_blocks": self.blocks,
            "augment_dim": 9,
        }
        rng, network = torch.Generator().manual_seed(0), build("EDMPrecond", keywords)
        tensors = {
            key: torch.randn(value.shape, generator=rng) / math.sqrt(math.prod(value.shape[1:]))
            for key, value in network.named_parameters()
        }
        num = sum(value.numel() for value in tensors.values())
        tensors |= {key: torch.full(value.shape, 0.25) for key, value in network.named_buffers()}
        facts = Facts("EDMPrecond", keywords, 0.002, 80.0, "float32", "", "")
        tensorfile.write(path, FORMAT, tensors, facts._asdict())
        return num


SHAPES = (
    Shape("cifar10", 32, 128, (2, 2, 2), 4, (4, 6, 8, 10)),
    Shape("64", 64, 128, (1, 2, 2, 2), 4, (4, 10)),
)
SMALL = (Shape("small", 16, 16, (1, 2), 1, (2, 3), batch=2),)


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        what: ``gs``, ``gas``, ``sample`` or ``bare`` (the network's passes of a sample alone).
        shape: of the network.
        nfe: calls.
        batch: rows.
        memory: of a step; empty for sampling.
        setting: of the network.
    """

    what: str
    shape: str
    nfe: int
    batch: int
    memory: Memory | Literal[""] = ""
    setting: str = "exact"


@dataclass(frozen=True)
class Row(Case):
    """A figure.

    Attributes:
        seconds: median of a step, or of a sampling.
        quartiles: of the same.
        peak_bytes: above what was there before the first of them: weights of the network and the
            distance, teacher pairs.
        note: what the network says of itself, and whether a step ran out of memory.
    """

    seconds: float = math.nan
    quartiles: tuple[float, float] = (math.nan, math.nan)
    peak_bytes: int = 0
    note: str = ""


class Bench:
    """One device, one folder.

    Args:
        device: where everything runs.
        out: for figures, and weights while it runs.
        small: with L2 and two rounds, to see whether it runs.
    """

    def __init__(self, device: torch.device, out: Path, small: bool) -> None:
        self.device, self.out, self.small = device, out, small
        self.rounds, self.rows = (2 if small else ROUNDS), list[Row]()

    def timed(self, work: Callable[[], object]) -> tuple[float, tuple[float, float], int]:
        """Median and quartiles of seconds, and peak bytes."""
        seconds = []
        with peak_memory(self.device) as peak:
            for _ in range(WARM):
                work()
            for _ in range(self.rounds):
                self._wait()
                start = time.perf_counter()
                work()
                self._wait()
                seconds.append(time.perf_counter() - start)
        seconds.sort()
        ends = seconds[len(seconds) // 4], seconds[3 * len(seconds) // 4]
        return statistics.median(seconds), ends, peak.bytes

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def backbone(self, weights: Path, setting: NetworkSpec) -> EDM:
        """The network on the device, as the setting says."""
        made = EDM(weights=str(weights), device=str(self.device))
        accelerated(made, setting)
        return made

    def distance(self, backbone: EDM) -> Callable[[Tensor, Tensor], Tensor]:
        """LPIPS of a random VGG16: as slow as the published one."""
        if self.small:
            return L2(backbone)
        torch.manual_seed(0)
        heads = [torch.full((1, stage[-1], 1, 1), 0.1, device=self.device) for stage in STAGES]
        return LPIPS(backbone, trunk=Trunk().to(self.device), heads=heads)

    def run(self, weights: Path, case: Case) -> None:
        """Time a case; one that fails is a line and no figure."""
        gc.collect()  # what the case before held in circles would be freed in the clock
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            (self.step if case.memory else self.sampling)(weights, case)
        except Exception as error:  # whatever it is, the others are wanted
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            click.echo(f"{' '.join(map(str, asdict(case).values()))}: {first}")

    def step(self, weights: Path, case: Case) -> None:
        """Time a training step."""
        assert case.memory
        backbone, num = self.backbone(weights, SETTINGS[case.setting]), case.batch
        noise = backbone.noise(range(2 * num)).cpu()
        pairs = Samples(range(2 * num), noise, noise.flip(0), None, 0.0, 0, 0.0, 0)
        spec = FitSpec(iterations=10_000, batch=num, train_size=2 * num, memory=case.memory)
        solver = SOLVERS[case.what](Setting(backbone.schedule, case.nfe, backbone.output))
        fit = Fit(solver, Lesson(spec, 0, backbone, self.distance(backbone), pairs, pairs))
        self.note(case, fit.advance, backbone)
        if fit.portions.halved:
            self.rows[-1] = replace(self.rows[-1], note="out of memory: the batch was split")

    def sampling(self, weights: Path, case: Case) -> None:
        """Time the bare network, a sampling, and one from a graph."""
        plain = self.backbone(weights, EXACT)
        solver = GS(Setting(plain.schedule, case.nfe, plain.output))
        tableau, noise = solver.tableau().detach(), plain.noise(range(case.batch))
        sigma = torch.ones((), device=self.device)

        @torch.no_grad()
        def bare() -> None:
            for _ in range(case.nfe):
                plain.network(noise, sigma)

        self.note(replace(case, what="bare"), bare, plain)
        self.note(case, lambda: sample(plain, tableau, noise), plain)
        if self.device.type == "cuda":
            quick = self.backbone(weights, NetworkSpec(cuda_graphs=True))
            case = replace(case, setting="cuda_graphs")
            self.note(case, lambda: sample(quick, tableau, noise), quick)
            gap = (sample(quick, tableau, noise) - sample(plain, tableau, noise)).abs().max()
            click.echo(f"  largest difference to the played pass: {float(gap):.3g}")

    def note(self, case: Case, work: Callable[[], object], backbone: EDM) -> None:
        """Time, and keep the figure at once."""
        name = " ".join(f"{value}" for value in asdict(case).values())
        seconds, quartiles, peak = self.timed(work)
        said = "; ".join(f"{key}: {value}" for key, value in facts_of(backbone).items())
        row = Row(**asdict(case), seconds=seconds, quartiles=quartiles, peak_bytes=peak, note=said)
        self.rows.append(row)
        with (self.out / "figures.jsonl").open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        click.echo(f"{name}: {seconds:.4f} s, {peak / 1e9:.2f} GB")


def steps(shapes: Sequence[Shape], setting: str, memories: Sequence[Memory]) -> Iterator[Case]:
    """Training steps of both solvers."""
    for shape, memory in itertools.product(shapes, memories):
        for nfe, name in itertools.product(shape.nfes, SOLVERS):
            yield Case(name, shape.name, nfe, shape.batch, memory, setting)


def samplings(shapes: Sequence[Shape]) -> Iterator[Case]:
    """Samplings with few and with many rows."""
    for shape in shapes:
        for batch in (1, shape.batch, 256):
            yield Case("sample", shape.name, shape.nfes[0], batch)


def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
    """Everything, what is wanted most first."""
    yield from steps(shapes, "exact", ("recompute",))
    ends = [replace(shape, nfes=shape.nfes[-1:]) for shape in shapes[:1]]
    others = [setting for setting in SETTINGS if setting != "exact"]
    for setting in others:
        yield from steps(ends, setting, ("recompute",))
    yield from samplings(shapes)
    yield from steps(shapes, "exact", ("store",))
    for setting in others:
        yield from steps(shapes, setting, ("recompute",))


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of markdown: steps beside the paper, then sampling beside the bare network."""
    yield "| network | step | NFE | memory | setting | s / iteration | GB | GAS / GS | paper, s |"
    yield "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: |"
    known = {(r.shape, r.what, r.nfe, r.memory, r.setting): r.seconds for r in rows}
    for r in rows:
        if r.what not in SOLVERS:
            continue
        base = known.get((r.shape, "gs", r.nfe, r.memory, r.setting))
        ratio = f"{r.seconds / base:.2f}" if base and r.what == "gas" else ""
        minutes = PAPER_MINUTES.get((r.shape, r.what), {}).get(r.nfe)
        paper = f"{minutes * 60 / 10_000:.3f}" if minutes else ""
        yield (
            f"| {r.shape} | {r.what} | {r.nfe} | {r.memory} | {r.setting} | {r.seconds:.4f} | "
            f"{r.peak_bytes / 1e9:.2f} | {ratio} | {paper} |"
        )
    yield ""
    yield "| network | NFE | batch | bare, s | sampling | with graphs |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    timed = {(r.shape, r.nfe, r.batch, r.what, r.setting): r.seconds for r in rows}
    for r in rows:
        if r.what != "bare":
            continue
        key = r.shape, r.nfe, r.batch
        found = [timed.get((*key, "sample", setting)) for setting in ("exact", "cuda_graphs")]
        shown = " | ".join("" if f is None else f"{f / r.seconds:.3f}" for f in found)
        yield f"| {r.shape} | {r.nfe} | {r.batch} | {r.seconds:.4f} | {shown} |"


def heading(device: torch.device, sizes: dict[str, int]) -> str:
    """Device, versions, date, parameters."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    num = ", ".join(f"{key} {value:,}" for key, value in sizes.items())
    when = datetime.now(UTC).date().isoformat()
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{name}, torch {torch.__version__}{cuda}, {when}; parameters: {num}\n\n"


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="A tiny network, to see whether everything runs.")
@click.option("--limit", default=420.0, show_default=True, help="Seconds; no figure begins later.")
def main(out: Path, device: str, small: bool, limit: float) -> None:
    """Time everything, what is wanted most first."""
    try:
        check_device("--device", device)
    except SolverBenchError as error:
        raise click.ClickException(str(error)) from error
    start, place = time.monotonic(), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    shapes, bench, left = SMALL if small else SHAPES, Bench(place, out, small), 0
    with tempfile.TemporaryDirectory() as folder:
        files = {shape.name: Path(folder) / f"{shape.name}.safetensors" for shape in shapes}
        sizes = {shape.name: shape.write(files[shape.name]) for shape in shapes}
        for case in dict.fromkeys(cases(shapes)):
            if time.monotonic() - start > limit:
                left += 1
                continue
            bench.run(files[case.shape], case)
            text = heading(place, sizes) + "\n".join(table(bench.rows)) + "\n"
            write_text(out / "figures.md", text)
    click.echo(f"{out / 'figures.md'}; {left} figures left out for want of time")


if __name__ == "__main__":
    main()

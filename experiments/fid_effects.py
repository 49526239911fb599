"""How much each habit of measuring moves a Frechet distance, on an embedded backbone.

    python experiments/fid_effects.py digits
    python experiments/fid_effects.py cifar16 --data cifar10.tar.xz

One set of images is sampled; each row changes one thing and is compared with it seed by seed. The
figures are in docs/why-is-my-fid-different.md.
"""

import copy
import io
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import solverbench as sb
from solverbench.backbones import datasets
from solverbench.backbones.base import Backbone, Condition
from solverbench.backbones.extractor import Classifier, EmbeddedExtractor, scaled
from solverbench.benchmark import metrics as m
from solverbench.benchmark.extractors.resizing import tf1_bilinear
from solverbench.images import Moments, moments, quantise_adm, quantise_edm

FIRST = 50_000  # seed, as in records
BATCH = 64  # states sampled at once
BLOCK = 256  # images through the extractor at once
SOLVER, NFE = "unipc-3", 10


@dataclass(frozen=True)
class Row:
    """A line of the table; None where there is no such number.

    Attributes:
        what: was done otherwise.
        value: distance, with its error.
        change: from the base, with its error.
    """

    what: str
    value: tuple[float, float | None]
    change: tuple[float, float | None] | None = None

    def line(self, effect: str) -> str:
        """Markdown; a change beyond 1.96 of its errors is bold."""
        value = f"{self.value[0]:.3f}"
        value += "" if self.value[1] is None else f" ± {self.value[1]:.3f}"
        if self.change is None:
            return f"| {effect} | {self.what} | {value} | |"
        change, se = self.change
        shown = f"{change:+.1g}" if abs(change) < 5e-4 else f"{change:+.3f}"
        if se is not None:
            shown += f" ± {se:.1g}" if se < 5e-4 else f" ± {se:.3f}"
            shown = f"**{shown}**" if abs(change) > 1.96 * se else shown
        return f"| {effect} | {self.what} | {value} | {shown} |"


class Bench:
    """The base and what is compared with it.

    Args:
        name: backbone and extractor.
        num: images.
        data: of CIFAR-10, for what does not ship.
    """

    def __init__(self, name: str, num: int, data: Path | None) -> None:
        self.name, self.num = name, num
        self.backbone: Backbone = sb.load_backbone(name)
        extractor = EmbeddedExtractor(name)
        self.network, self.reference = extractor.network, extractor.reference().embedding
        known = name == "digits" or data is not None
        self.real = getattr(datasets, name)(data) if known else None
        self.seeds = range(FIRST, FIRST + num)
        self.images = self.sampled(self.backbone.condition(self.seeds))
        self.pixels = quantise_edm(self.images)
        self.rows = rows_of(self.network, self.pixels)
        self.base = m.frechet_distance(generated=self.rows, reference=self.reference)

    def sampled(self, condition: Condition | None) -> Tensor:
        """Images in [-1, 1] of the seeds."""
        tableau = sb.load_solver(SOLVER, self.backbone, NFE).tableau()
        noise, parts = self.backbone.noise(self.seeds), []
        for i in range(0, self.num, BATCH):
            given = None if condition is None else Condition(condition.labels[i : i + BATCH])
            with torch.no_grad():
                states = sb.sample(self.backbone, tableau, noise[i : i + BATCH], given)
                parts.append(self.backbone.decode(states).float())
        return torch.cat(parts)

    def changed(self, what: str, rows: Tensor, reference: Moments | None = None) -> Row:
        """Other features of the same seeds beside the base; references are held fixed."""
        found = m.frechet_distance(generated=rows, reference=reference or self.reference)
        apart = m.paired_difference(found, self.base)
        return Row(what, (found.value, found.se), (apart.difference, apart.se))


def rows_of(
    network: Classifier, pixels: Tensor, batch: int = BLOCK, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Embeddings (M, 64) in any batch and precision."""
    network = copy.deepcopy(network).to(dtype)
    with torch.no_grad():
        parts = [
            network.embedding(network.trunk(scaled(part).to(dtype))).float()
            for part in torch.split(pixels, batch)
        ]
    return torch.cat(parts)


def base(bench: Bench) -> Iterator[Row]:
    """The distance as records hold it."""
    yield Row(f"nothing: {bench.num} images", (bench.base.value, bench.base.se))


def sample_count(bench: Bench) -> Iterator[Row]:
    """Fewer images: means over disjoint blocks, with the error of the mean; then bias removed."""
    full = bench.base.value
    for blocks in (10, 5, 3):
        found = m.over_seed_blocks(
            m.frechet_distance, generated=bench.rows, reference=bench.reference, num_blocks=blocks
        )
        what = f"{bench.num // blocks} images, mean of {blocks} blocks"
        yield Row(what, (found.mean, found.se), (found.mean - full, None))
    half = m.half_split(generated=bench.rows, reference=bench.reference)
    yield Row("bias removed (half split)", (half.value, half.se), (half.value - full, None))


def quantisation(bench: Bench) -> Iterator[Row]:
    """Floor in place of rounding, and no 8 bits at all."""
    yield bench.changed("ADM rule (floor)", rows_of(bench.network, quantise_adm(bench.images)))
    levels = (bench.images.clamp(-1, 1) + 1) * 127.5  # ``scaled`` takes them back to [-1, 1]
    yield bench.changed("no rounding", rows_of(bench.network, levels))


def there_and_back(pixels: Tensor, rule: str) -> Tensor:
    """Pixels at twice the size by a rule, then the mean of each 2 x 2, in 8 bits."""
    side, images = 2 * pixels.shape[-1], pixels.float()
    if rule == "tf1":
        large = tf1_bilinear(images, side, side)
    else:
        large = functional.interpolate(images, size=side, mode=rule, align_corners=False)
    return functional.avg_pool2d(large, 2).round().clamp(0, 255).to(torch.uint8)


def resize(bench: Bench) -> Iterator[Row]:
    """Generated images alone by each rule, then both sides by the same rule."""
    rules = {"tf1": "TF1 bilinear", "bilinear": "half-pixel bilinear", "bicubic": "bicubic"}
    rows = {rule: rows_of(bench.network, there_and_back(bench.pixels, rule)) for rule in rules}
    for rule, words in rules.items():
        yield bench.changed(f"{words}, generated alone", rows[rule])
    if bench.real is not None:
        for rule, words in rules.items():
            real = rows_of(bench.network, there_and_back(bench.real.pixels, rule))
            yield bench.changed(f"{words}, both sides", rows[rule], moments(real))


def jpeg(bench: Bench) -> Iterator[Row]:
    """Generated images saved as JPEG, Pillow's defaults but for the quality."""
    for quality in (95, 75):
        rows = rows_of(bench.network, torch.stack([lossy(x, quality) for x in bench.pixels]))
        yield bench.changed(f"quality {quality}, generated alone", rows)


def lossy(image: Tensor, quality: int) -> Tensor:
    """An image (C, H, W) after JPEG."""
    buffer, channels = io.BytesIO(), len(image)
    pixels = image[0] if channels == 1 else image.movedim(0, -1)
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as again:
        found = torch.from_numpy(np.array(again))
    return found[None] if channels == 1 else found.movedim(-1, 0)


def reference(bench: Bench) -> Iterator[Row]:
    """As many training images as there are test images, in blocks, and the test images.

    The error of the first value is the deviation over blocks: what the choice of images does.
    """
    if bench.real is None:
        return
    pixels, test = bench.real.pixels, bench.real.held_out[0]
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    real = rows_of(bench.network, pixels)[order]
    blocks = torch.split(real[: len(real) // len(test) * len(test)], len(test))
    found = [m.frechet_distance(generated=bench.rows, reference=b).value for b in blocks]
    mean, sd = statistics.mean(found), statistics.stdev(found)
    what = f"{len(test)} training images, mean and deviation of {len(found)}"
    yield Row(what, (mean, sd), (mean - bench.base.value, None))
    if bench.name != "digits":  # whose network has seen all
        unseen = rows_of(bench.network, test)
        other = m.frechet_distance(generated=bench.rows, reference=unseen).value
        yield Row(f"{len(test)} test images", (other, sd), (other - bench.base.value, None))


def precision(bench: Bench) -> Iterator[Row]:
    """The extractor in half precision, on the generated side."""
    for dtype in (torch.bfloat16, torch.float16):
        rows = rows_of(bench.network, bench.pixels, dtype=dtype)
        yield bench.changed(f"extractor in {str(dtype)[6:]}", rows)


def batch(bench: Bench) -> Iterator[Row]:
    """The extractor's batch."""
    for size in (1, 50, 1000):
        rows = rows_of(bench.network, bench.pixels, size)
        yield bench.changed(f"{size} in place of {BLOCK}", rows)


def classes(bench: Bench) -> Iterator[Row]:
    """Random classes in place of seed mod 10, from the same noise."""
    if bench.backbone.condition(bench.seeds) is not None:
        rng = torch.Generator().manual_seed(7)
        images = bench.sampled(Condition(torch.randint(10, (bench.num,), generator=rng)))
        yield bench.changed("random classes", rows_of(bench.network, quantise_edm(images)))


EFFECTS = (
    *(base, sample_count, quantisation, resize, jpeg),
    *(reference, precision, batch, classes),
)


@click.command()
@click.argument("name", type=click.Choice(["digits", "cifar16"]))
@click.option("--num", type=click.IntRange(1000), default=5000, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="CIFAR-10, a tar or folder.")
def main(name: str, num: int, data: Path | None) -> None:
    """Print the table of a backbone."""
    bench = Bench(name, num, data)
    click.echo(f"FD[{name}], {SOLVER} at NFE {NFE}, seeds {FIRST}-{FIRST + num - 1}\n")
    click.echo("| effect | what is otherwise | FD | change |\n|---|---|---|---|")
    for effect in EFFECTS:
        for row in effect(bench):
            click.echo(row.line(effect.__name__.replace("_", " ").replace("jpeg", "JPEG")))
    click.echo(f"\n{time.process_time():.0f} s of the processor, torch {torch.__version__}")


if __name__ == "__main__":
    main()

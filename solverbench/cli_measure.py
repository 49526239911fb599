"""Commands that measure images that no solver of ours made, and make references of folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from solverbench.cli_parts import options_of, words

SEED = click.IntRange(0, 2**63 - 1)
OF_NAMES = (
    "Folder, npz, safetensors, or an extractor, whose name wins over a folder (write ./NAME)."
)
OUT = "FILE.npz to write; folders on the way are made."


class Gibibytes(click.ParamType[float]):
    """A finite positive number of at most 2^20 GiB; click's ranges let NaN through."""

    name = "GiB"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        found: float = click.FLOAT.convert(value, param, ctx)
        if not 0 < found <= 2**20:
            self.fail(f"{value} is no number of GiB; give one above 0, for example 0.5", param, ctx)
        return found


GIB = Gibibytes()


def _folder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of whatever turns folders of images into features."""
    for option in reversed(
        (
            click.option(
                "--extractor", help="See solverbench list extractors; also of files that name none."
            ),
            click.option("--extractor-option", "others", multiple=True, help="key=value."),
            click.option("--num", type=click.IntRange(2), help="Images of a folder [all]."),
            click.option("--seed", type=SEED, default=0, help="Of random subsets [0]."),
            click.option("--lossy", is_flag=True, help="Read JPEG and the like too."),
            click.option("--no-cache", "cache", flag_value=False, default=True, help="Keep none."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("generated")
@click.option("--reference", required=True, help=OF_NAMES)
@_folder_options
@click.option("--metrics", multiple=True, callback=words, help="fd,precision,... [all possible]")
@click.option("--k", type=click.IntRange(1), default=5, help="Nearest neighbours [5].")
@click.option(
    "--convention", type=click.Choice(["prdc", "kynkaanniemi"]), default="prdc", help="[prdc]"
)
@click.option("--max-memory", type=GIB, default=1.0, help="GiB for neighbours [1].")
@click.option("--unequal", is_flag=True, help="Neighbours of all rows, not of equal numbers.")
@click.option(
    "--blocks", type=click.IntRange(3), default=None, help="Spread over R blocks of rows."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def evaluate(generated: str, reference: str, as_json: bool, **choice: Any) -> None:
    """Measure GENERATED, a folder of images or a file of features, against a reference."""
    from solverbench.benchmark.evaluate import evaluate as measure
    from solverbench.benchmark.evaluate import lines
    from solverbench.benchmark.sides import Choice

    choice["options"] = options_of(choice.pop("others"))
    choice["blocks"] = choice["blocks"] or 0
    choice["max_memory"] = int(choice["max_memory"] * 2**30)
    found = measure(generated, reference, Choice(**choice))
    click.echo(
        json.dumps(found.record(), indent=1, allow_nan=False)
        if as_json
        else "\n".join(lines(found))
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help=OUT)
@click.option(
    "--features", is_flag=True, help="Keep all rows too: neighbours, KID, MIND need them."
)
@_folder_options
def reference(folder: Path, out: Path, features: bool, **choice: Any) -> None:
    """Make reference statistics of a FOLDER of images, as EDM and ADM write them."""
    from solverbench.benchmark.evaluate import make_reference
    from solverbench.benchmark.sides import Choice

    choice["options"] = options_of(choice.pop("others"))
    made = make_reference(folder, out, Choice(**choice), features)
    what = "statistics and features" if features else "statistics"
    click.echo(f"{out}: {what} of {made.about}, extractor {made.extractor}")
    for note in made.notes:
        click.echo(note)

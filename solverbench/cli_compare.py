"""The command that tells two records apart."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two records, or two folders of records, metric by metric.

    Prints both values, their difference with its standard error, and whether it is more than 1.96
    of these, or more by Student's t where an error rests on a few training seeds. Image by image
    (paired) where both were sampled from the same seeds.
    """
    from solverbench.leaderboards.comparing import compare as differences

    found = differences(a, b)
    if as_json:
        click.echo(json.dumps([one.record() for one in found], indent=1))
        return
    click.echo("\n\n".join("\n".join(one.text()) for one in found))

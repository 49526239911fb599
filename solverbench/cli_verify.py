"""The command that proves the arithmetic on the user's own machine."""

import json
import sys
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def verify(as_json: bool) -> None:
    """Compare metrics and solvers with golden numbers, on this machine.

    Prints the worst error of each beside what it may be; exit code 1 where one is off by more.
    """
    import torch

    from solverbench.verifying import verify as run

    found = []
    for done in run():
        found.append(done)
        if not as_json:
            limit = f"{done.error:8.1e}, allowed {done.tolerance:6.0e} {done.unit}"
            where = "" if done.passed else f"; worst: {done.worst}"
            sign = "ok  " if done.passed else "FAIL"
            click.echo(f"{sign} {done.what:<24} {done.cases:>3} cases {limit}{where}")
    failed = sum(not done.passed for done in found)
    seconds = sum(done.seconds for done in found)
    if as_json:
        rows = [asdict(done) | {"passed": done.passed} for done in found]
        click.echo(json.dumps({"checks": rows, "failed": failed, "torch": torch.__version__}))
    else:
        click.echo(
            f"{len(found)} checks in {seconds:.1f} s, torch {torch.__version__}: "
            + (f"{failed} failed" if failed else "all within what is allowed")
        )
    if failed:
        sys.exit(1)

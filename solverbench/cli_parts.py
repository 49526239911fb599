"""What the commands are made of: errors in one line, lists of numbers, names and options."""

from collections.abc import Callable
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from solverbench.errors import MissingWeightsError, SolverBenchError, shown

MAX_RANGE = 100_000  # numbers that one word may stand for
BACKBONE = click.option("--backbone", default="cifar16", show_default=True, help="Plugin.")
FETCH = click.option("--fetch", is_flag=True, help="Fetch missing published files first.")
QUIET = click.option("--quiet", is_flag=True, help="No progress.")


class Group(click.Group):
    """Prints our own errors, and the system's about files, in one line; the rest has a traceback.

    Exit code 2, or 3 where published files are missing.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SolverBenchError as error:
            _fail(ctx, str(error), 3 if isinstance(error, MissingWeightsError) else 2)
        except (NoArgsIsHelpError, BrokenPipeError):
            raise
        except OSError as error:
            _fail(ctx, f"{shown(str(error.filename or 'a file'))}: {error.strerror or error}")
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "solverbench"
            _fail(ctx, f"{error.format_message()} See: {path} --help")


def _fail(ctx: click.Context, message: str, code: int = 2) -> None:
    click.echo(f"error: {shown(' '.join(message.split()), len(message))}", err=True)
    ctx.exit(code)


def numbers(least: int, most: int) -> Callable[..., tuple[int, ...]]:
    """A callback for lists such as ``4,6,8`` or ``0-63``, possibly repeated."""

    def parse(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[int, ...]:
        found: list[int] = []
        for word in words(ctx, parameter, (value,) if isinstance(value, str) else value):
            low, dash, high = word.partition("-")
            ends = [int(end) for end in (low, high if dash else low) if end.isdecimal()]
            if len(ends) < 2 or not least <= ends[0] <= ends[1] <= most:
                raise click.BadParameter(
                    f"{word!r} is no whole number from {least} to {most}; write 4,6,8 or 0-63"
                )
            found += range(ends[0], min(ends[1], ends[0] + MAX_RANGE) + 1)
        return tuple(dict.fromkeys(found))

    return parse


def words(
    ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """A callback for lists of names, comma-separated or repeated."""
    return tuple(word.strip() for part in value for word in part.split(",") if word.strip())


def options_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` words as a mapping; values are YAML."""
    from solverbench.baselines.recipe import parse_yaml
    from solverbench.benchmark.spec import RESERVED

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise SolverBenchError(f"option '{pair}': write key=value, for example variant=bh2")
        if key in RESERVED:
            raise SolverBenchError(
                f"option '{pair}': {key} is no option; it has a place of its own"
            )
        found[key] = parse_yaml(value, f"option '{pair}'")
    return found

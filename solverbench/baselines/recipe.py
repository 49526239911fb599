"""Recipes: the matrix of cells to run, as YAML, checked whole before anything slow starts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic import model_validator as check

from solverbench.benchmark.spec import (
    EXACT,
    EvaluationSpec,
    FitSpec,
    Model,
    Named,
    NetworkSpec,
    RunSpec,
    TeacherSpec,
)
from solverbench.errors import SolverBenchError, unknown_name

ABOVE = re.compile(r"student ?\+ ?([1-9]\d?)")  # NFE of a teacher above its student
NO_YAML = (  # what safe loading raises; its scalars with a tag of their own raise the last four
    *(yaml.YAMLError, RecursionError, ValueError),
    *(LookupError, AttributeError, TypeError, ArithmeticError),
)
RECIPES = Path(__file__).with_name("recipes")


def _named(value: object) -> object:
    """A bare name stands for the plugin with its defaults."""
    return {"name": value} if isinstance(value, str) else value


def _listed(value: object) -> object:
    """A bare number stands for a list of one."""
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Plugin = Annotated[Named, BeforeValidator(_named)]
Counts = Annotated[list[PositiveInt], BeforeValidator(_listed), Field(min_length=1)]
Seeds = Annotated[list[NonNegativeInt], BeforeValidator(_listed), Field(min_length=1)]


class Entry(Named):
    """A solver of the matrix, with what it does differently from the rest of the recipe.

    Attributes:
        schedule: optimiser that chooses its times; a bare name is enough.
        nfe: instead of the recipe's list.
        fit: the recipe's budget with the entry's own keys over it.
        seeds: instead of the recipe's list.
    """

    schedule: Plugin | None = None
    nfe: Counts | None = None
    fit: FitSpec | None = None
    seeds: Seeds | None = None


class Recipe(Model):
    """A matrix: solvers x NFE (x training seeds) on one backbone, and how cells are measured.

    Attributes:
        name: as on the command line.
        about: one line for lists.
        backbone: plugin; a bare name is enough.
        solvers: plugins; a bare name is enough.
        nfe: for every solver that names none.
        seeds: of training, for learned solvers.
        fit: training budget of learned solvers.
        teacher: the reference run; always a row of its own. ``nfe: student+1`` gives every NFE a
            teacher of its own, one call above.
        teacher_above: calls of the teacher above the student's, where it is told so.
        evaluation: shared by all cells.
        network: how it is run, in all cells and for the teacher; exact by default.
        grid: seeds shown in the image grid.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    backbone: Plugin
    solvers: list[Annotated[Entry, BeforeValidator(_named)]] = Field(min_length=1)
    nfe: Counts
    seeds: Seeds = Field(default=[0])
    fit: FitSpec | None = None
    teacher: TeacherSpec
    teacher_above: PositiveInt | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    network: NetworkSpec = EXACT
    grid: PositiveInt = 8

    @check(mode="before")
    @classmethod
    def _merge(cls, data: object) -> object:
        """Lay an entry's ``fit`` over the recipe's; a bare teacher name becomes a plugin."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        base, solvers, teacher = data.get("fit"), data.get("solvers"), data.get("teacher")
        if isinstance(teacher, dict):
            data["teacher"] = teacher = teacher | {"solver": _named(teacher.get("solver"))}
            if above := ABOVE.fullmatch(str(teacher.get("nfe"))):
                data["teacher_above"] = int(above[1])
                data["teacher"] = teacher | {"nfe": _largest(data) + int(above[1])}
        if isinstance(base, dict) and isinstance(solvers, list):
            known = {key: value for key, value in base.items() if key in FitSpec.model_fields}
            data["solvers"] = [_with_fit(entry, known) for entry in solvers]
        return data


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    edit: Callable[[dict[str, Any]], None] = lambda data: None,
) -> Recipe:
    """Read a recipe, apply overrides, check it.

    Args:
        name_or_path: a name from ``recipe_names``, or a file: it ends in .yaml or holds a slash.
        overrides: ``a.b=c``; the value is YAML, a number in the path is an index of a list.
        edit: changes the plain data before the overrides do.

    Raises:
        SolverBenchError: if there is no such recipe, or it or an override is wrong; all faults
            in one line.
    """
    path = _find(str(name_or_path))
    data = parse_yaml(_read(path), f"recipe {path}")
    if not isinstance(data, dict):
        raise SolverBenchError(f"recipe {path}: holds no keys; see {RECIPES / 'smoke.yaml'}")
    edit(data)
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(_faults(error))
        where = "the file or the override" if overrides else f"{path}"
        raise SolverBenchError(f"recipe {path.stem}: {faults}; correct {where}") from error


def cells(recipe: Recipe, learnable: Callable[[str], bool]) -> list[RunSpec]:
    """The cells of a recipe, each once, the teacher (or teachers) last.

    Args:
        recipe: the matrix.
        learnable: whether the solver of this name is trained.

    Raises:
        SolverBenchError: if a solver learns and the recipe has no ``fit``, or cannot be trained
            and has one of its own.
    """
    shared: dict[str, Any] = {"backbone": recipe.backbone, "evaluation": recipe.evaluation}
    shared |= {"network": recipe.network}
    found = [
        RunSpec(
            solver=Named(name=e.name, options=e.options),
            schedule=e.schedule,
            nfe=n,
            teacher=_teacher(recipe, n),
            fit=fit,
            seed=s,
            **shared,
        )
        for e in recipe.solvers
        for fit, seeds in [_training(recipe, e, learnable(e.name))]
        for n in e.nfe or recipe.nfe
        for s in seeds
    ]
    for n in sorted({spec.nfe for spec in found}):
        teacher = _teacher(recipe, n)
        found.append(RunSpec(solver=teacher.solver, nfe=teacher.nfe, teacher=teacher, **shared))
    last = {spec.key(): spec for spec in reversed(found)}  # of equal cells the last stays
    return list(last.values())[::-1]


def _teacher(recipe: Recipe, nfe: int) -> TeacherSpec:
    """The teacher of students at an NFE."""
    above = recipe.teacher_above
    return (
        recipe.teacher
        if above is None
        else TeacherSpec(solver=recipe.teacher.solver, nfe=nfe + above)
    )


def _largest(data: dict[str, Any]) -> int:
    """The largest NFE of a recipe's plain data; 0 where that is none."""
    listed = _listed(data.get("nfe"))
    listed = listed if isinstance(listed, list) else []
    return max((n for n in listed if isinstance(n, int)), default=0)


def _training(recipe: Recipe, entry: Entry, learns: bool) -> tuple[FitSpec | None, Sequence[int]]:
    """Budget and seeds of an entry: none, and seed 0, where nothing is learned."""
    if not learns and entry.fit is not None:
        raise SolverBenchError(
            f"recipe {recipe.name}: solver '{entry.name}' is not trained; take away its 'fit'"
        )
    if not learns:
        return None, (0,)
    fit = entry.fit or recipe.fit
    if fit is None:
        raise SolverBenchError(
            f"recipe {recipe.name}: solver '{entry.name}' is trained and there is no budget; "
            "add a 'fit' section, for example --set fit.iterations=300"
        )
    return fit, entry.seeds or recipe.seeds


def _with_fit(entry: object, base: dict[str, object]) -> object:
    """An entry whose own ``fit`` keys lie over those of the recipe."""
    if isinstance(entry, dict) and isinstance(entry.get("fit"), dict):
        return entry | {"fit": base | entry["fit"]}
    return entry


def _find(name: str) -> Path:
    """The file of a recipe; a name never means a file in the current folder."""
    if "/" in name or "\\" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in recipe_names():
        raise unknown_name(
            "recipe", name, recipe_names(), f"{', '.join(recipe_names())}, or a file NAME.yaml"
        )
    return RECIPES / f"{name}.yaml"


def _read(path: Path) -> str:
    """The text of a recipe."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SolverBenchError(f"cannot read recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SolverBenchError(f"recipe {path} is not UTF-8 text; save it as such") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers and booleans: ``1e-3`` is a number, ``no`` and ``on`` are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the parent declares it without ClassVar)
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":bool", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?\Z"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, what: str) -> Any:
    """YAML to plain data; only scalars, lists and mappings can be made."""
    try:
        return yaml.load(text, Loader=_Loader)
    except NO_YAML as error:
        told = getattr(error, "problem", None) or error
        foreign = not isinstance(error, yaml.YAMLError | ValueError | RecursionError)
        reason = "a value does not fit its tag" if foreign else " ".join(str(told).split())
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise SolverBenchError(f"{what}: not YAML{line}: {reason[:160]}; correct it") from error


def _override(data: dict[str, Any], override: str) -> None:
    """Set ``a.b=c`` in nested mappings and lists."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise SolverBenchError(f"override '{override}': write a.b=c, for example fit.iterations=20")
    here: Any = data
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        slot = _slot(here, key, override)
        if following is None:
            here[slot] = parse_yaml(text, f"override '{override}'")
            return
        below = here.get(slot) if isinstance(here, dict) else here[slot]
        if isinstance(below, str) or below is None:  # a bare name, or nothing yet
            here[slot] = {} if below is None else {"name": below}
        here = here[slot]


def _slot(here: object, key: str, override: str) -> str | int:
    """The key of a mapping or the index of a list, if it is there to be set."""
    if isinstance(here, dict):
        return key
    if isinstance(here, list) and key.isdecimal() and int(key) < len(here):
        return int(key)
    size = f"a list; allowed: 0 to {len(here) - 1}" if isinstance(here, list) else "no section"
    raise SolverBenchError(f"override '{override}': '{key}' cannot be set, this is {size}")


def _faults(error: ValidationError) -> Iterator[str]:
    """Every fault as ``where: what``, with the allowed keys where one is unknown."""
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"])) or "recipe"
        if fault["type"] == "extra_forbidden":
            allowed = ", ".join(_allowed(fault["loc"][:-1]))
            yield f"{where}: unknown key; allowed: {allowed}"
        elif fault["type"] == "missing":
            yield f"{where}: missing"
        else:
            message = " ".join(fault["msg"].removeprefix("Value error, ").split())
            given = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
            yield f"{where}: {message[0].lower()}{message[1:]}{given}"


def _allowed(loc: Sequence[str | int]) -> list[str]:
    """The keys of the model at a place in a recipe."""
    model: type[BaseModel] = Recipe
    for key in loc:
        if isinstance(key, str) and key in model.model_fields:
            model = _model_in(model.model_fields[key].annotation) or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model named in a type such as ``list[Entry] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in get_args(annotation) if (m := _model_in(arg))), None)

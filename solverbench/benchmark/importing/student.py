"""The paper's students: checkpoints of GS and GAS, turned into tableaus."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone
from solverbench.benchmark.importing.artefacts import read_parts
from solverbench.benchmark.load import load_solver
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.solvers.base import MAX_NFE, LearnableSolver
from solverbench.solvers.tableau import Tableau, check_match
from solverbench.sources import Source, open_source, refuse
from solverbench.torchfile import Stored

PARAMETERS = ("theta", "xi", "c", "a")
SOLVERS = ("gs", "gas", "s4s-pc-gas")
TYPES = {torch.float32: "float32", torch.float64: "float64"}
NAME = re.compile(r"mu_logit|t_couple|[ca][1-9]\d*_diff")  # of the reference's tensors
NEARER = 0.25  # an exchange that brings two tensors so much nearer shows that they are exchanged
ROUNDING = 1e-12  # of a table, relative: other processors round exponentials differently
MOST_STEPS = 10**9
ORDER_CHECKS = 4  # sizes, pasts, names, neighbours; the last two need names in the file
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Student:
    """What the file of a student does not say.

    Attributes:
        solver: which method it was trained as: ``gs``, ``gas`` or ``s4s-pc-gas``.
        nfe: N, to be compared with the file's; taken from it where left away.
        t_min: last time; the backbone's own where left away.
        weights: the average (``ema``, which the paper evaluates) or the last ones (``raw``).
    """

    solver: str = "gs"
    nfe: int | None = None
    t_min: float | None = None
    weights: Weights = "ema"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The numbers of a student.

    Attributes:
        values: theta, xi, c_1, a_1, c_2, a_2 and so on, in the type of the file.
        facts: what the file says beside them.
    """

    values: Sequence[Tensor]
    facts: dict[str, Any]

    @property
    def nfe(self) -> int:
        """N."""
        return len(self.values[1])

    @property
    def history(self) -> int:
        """K, how many states and predictions the student keeps."""
        return len(self.values) // 2 - 1

    def parameters(self) -> dict[str, Tensor]:
        """Under our names, float64; tables have lag i in row i - 1."""
        theta, xi, *tables = (value.double() for value in self.values)
        return {
            "theta": theta,
            "xi": xi,
            "c": torch.stack(tables[::2]),
            "a": torch.stack(tables[1::2]),
        }


def import_student(path: Path, backbone: Backbone, out: Path, student: Student) -> Tableau:
    """Turn a published student into a tableau file.

    Args:
        path: checkpoint of the authors' code.
        backbone: its frame and output; its weights are not used.
        out: tableau file to write.
        student: what the checkpoint does not say.

    Returns:
        The tableau as it is read back.

    Raises:
        SolverBenchError: for a file that holds anything else, tensors in another order, or a
            student that does not fit.
    """
    _check_out(out)
    with open_source(path) as source:
        checkpoint = read_checkpoint(source, student.weights)
        if student.nfe not in (None, checkpoint.nfe):
            refuse(f"it is a student of {checkpoint.nfe} steps, not of {student.nfe}")
    facts = checkpoint.facts | {"file": path.name, "sha256": sha256_of(path)}
    facts |= {"solver": student.solver, "parameters_sha256": _digest(checkpoint.parameters())}
    solver = _made(student.solver, backbone, checkpoint.nfe, _options(checkpoint, student))
    _fill(solver, checkpoint.parameters())
    tableau = solver.tableau().detach()
    check_match(backbone, tableau, torch.zeros(1, *backbone.state_shape))
    numbers = {key: value.tolist() for key, value in checkpoint.parameters().items()}
    kept = {"imported": facts, "trained": {"parameters": numbers}}
    replace(tableau, meta=tableau.meta | kept).save(out)
    read_student(out, backbone)
    return Tableau.load(out)


def _check_out(out: Path) -> None:
    try:
        is_folder = out.name in ("", "..") or out.is_dir()
    except OSError as error:  # too long, for example
        raise SolverBenchError(f"cannot write {out}: {error.strerror}. Name another") from error
    if is_folder:
        raise SolverBenchError(f"{out} is a folder; --out names a tableau file")


def read_student(path: Path, backbone: Backbone) -> LearnableSolver:
    """The solver of an imported student, for example to train it further.

    Args:
        path: what ``import_student`` wrote.
        backbone: of the same frame and output.

    Returns:
        The solver with its parameters, bit for bit those of the checkpoint.

    Raises:
        SolverBenchError: where the file, its parameters or its table are not those imported.
    """
    tableau = Tableau.load(path)
    try:
        facts, kept = tableau.meta["imported"], tableau.meta["trained"]["parameters"]
        values = {key: torch.tensor(kept[key], dtype=torch.float64) for key in PARAMETERS}
        options = {key: tableau.meta["options"][key] for key in ("history", "t_min")}
        name, digest = facts["solver"], facts["parameters_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise SolverBenchError(
            f"{path} is no imported student; solverbench import student makes one"
        ) from error
    if _digest(values) != digest:
        raise SolverBenchError(f"{path}: its parameters are not those that were imported")
    solver = _made(name, backbone, tableau.nfe, options)
    _fill(solver, values)
    again = solver.tableau().detach()
    for name in ("A", "tau"):
        wanted, found = getattr(tableau, name), getattr(again, name)
        if not float((wanted - found).abs().max()) <= ROUNDING * float(wanted.abs().max()):
            raise SolverBenchError(
                f"{path}: its table does not follow from its parameters on this backbone; "
                "import it again"
            )
    return solver


def _options(checkpoint: Checkpoint, student: Student) -> dict[str, Any]:
    history = checkpoint.history if checkpoint.history < checkpoint.nfe else None
    return {"history": history, "t_min": student.t_min}


def _made(name: str, backbone: Backbone, nfe: int, options: dict[str, Any]) -> LearnableSolver:
    if name not in SOLVERS:
        raise SolverBenchError(f"'{name}' has no published students; allowed: {', '.join(SOLVERS)}")
    solver = load_solver(name, backbone, nfe, **options)
    assert isinstance(solver, LearnableSolver)
    return solver


@torch.no_grad()
def _fill(solver: LearnableSolver, values: dict[str, Tensor]) -> None:
    for name, parameter in solver.named_parameters():
        parameter.copy_(values[name])


def _digest(values: dict[str, Tensor]) -> str:
    """Over the bits of the parameters, as float64, into which float32 goes without loss."""
    digest = hashlib.sha256()
    for name in PARAMETERS:
        digest.update(values[name].double().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(source: Source, weights: Weights = "ema") -> Checkpoint:
    """The numbers of a checkpoint, in the order theta, xi, c_1, a_1, c_2, a_2 and so on.

    Raises:
        SolverBenchError: where they are missing, stand in another order, or are no student's.
    """
    found = read_parts(source, "a student", ("ema", "model", "step"))
    named = _named(found["model"])
    if weights == "raw":
        if not named:
            refuse("its model has no tensors mu_logit, t_couple, c1_diff, a1_diff ...")
        values = _values(list(named.values()))
    else:
        values = _values(_shadows(found["ema"]))
    _check_sizes(values)
    _check_pasts(values)
    if named:
        _check_names(list(named), len(values))
        _check_neighbours(values, _values(list(named.values())))
    facts = {"weights": weights, "dtype": TYPES[values[1].dtype]} | _counts(found)
    return Checkpoint(values, facts | {"order_checks": ORDER_CHECKS if named else 2})


def _counts(found: dict[Any, Any]) -> dict[str, int | None]:
    """Steps of the training, and updates of the average where the file has them."""
    ema = found["ema"] if isinstance(found["ema"], dict) else {}
    counts = {"step": found["step"], "ema_updates": ema.get("num_updates")}
    for key, value in counts.items():
        missing = value is None and key == "ema_updates"
        if not missing and not (type(value) is int and 0 <= value <= MOST_STEPS):
            told = ascii(value)[:40] if type(value) in (float, bool) or value is None else "another"
            refuse(f"its {key} is {told}; it must be a whole number from 0 to {MOST_STEPS:,}")
    return counts


def _shadows(ema: Any) -> list[Any]:
    shadows = ema.get("shadow_params") if isinstance(ema, dict) else None
    if type(shadows) is not list:
        refuse("its ema has no list shadow_params")
    return shadows


def _order(num: int) -> list[str]:
    """The reference's names of ``num`` tensors, in the order in which they are registered."""
    pairs = [(f"c{i}_diff", f"a{i}_diff") for i in range(1, num // 2)]
    return ["mu_logit", "t_couple", *(name for pair in pairs for name in pair)]


def _named(model: Any) -> dict[str, Any]:
    """The tensors of a state dict that carry the reference's names, in their order."""
    if not isinstance(model, dict):
        return {}
    short = {key: key.rpartition(".")[2] for key in model if type(key) is str}
    return {name: model[key] for key, name in short.items() if NAME.fullmatch(name)}


def _values(stored: Sequence[Any]) -> list[Tensor]:
    """The tensors, read; each is a short row of numbers."""
    if not 4 <= len(stored) <= 2 + 2 * MAX_NFE or len(stored) % 2:
        refuse(f"it has {len(stored)} tensors; a student of K lags has 2 + 2 K")
    for place, part in enumerate(stored):
        if type(part) is not Stored or len(part.shape) != 1 or part.shape[0] > MAX_NFE:
            refuse(f"tensor {place} of {len(stored)} is no row of numbers")
        if part.storage.dtype not in TYPES:
            refuse(f"tensor {place} holds {part.storage.dtype}; it must hold torch.float32")
    values = [part.read() for part in stored]
    if not all(bool(value.isfinite().all()) for value in values):
        refuse("its numbers are not all finite; the training diverged")
    return values


def _check_sizes(values: Sequence[Tensor]) -> None:
    """N - 1 logits, then N numbers in each; at most N lags."""
    num, sizes = len(values[1]), [len(value) for value in values]
    if sizes != [num - 1] + [num] * (len(values) - 1):
        refuse(f"its tensors have sizes {sizes[:6]}..., N - 1 and then N each are expected")
    if len(values) > 2 + 2 * num:
        refuse(f"it has {len(values) // 2 - 1} lags for {num} steps; at most {num} can be used")
    if len({value.dtype for value in values}) > 1:
        refuse("its tensors are of several types")


def _check_pasts(values: Sequence[Tensor]) -> None:
    """Corrections of a past that does not exist yet have no gradient: they are still zero."""
    for place, value in enumerate(values[2:]):
        if bool((value[: place // 2] != 0).any()):
            refuse(
                f"tensor {place + 2} corrects a lag before there is such a past, so its tensors "
                "stand in a wrong order; expected: theta, xi, c1, a1, c2, a2 ..."
            )


def _check_names(names: list[str], num: int) -> None:
    if names != _order(num):
        refuse(
            f"its tensors stand in a wrong order ({', '.join(names[:4])} ...); "
            f"expected: {', '.join(_order(num)[:4])} ..."
        )


def _check_neighbours(values: Sequence[Tensor], named: Sequence[Tensor]) -> None:
    """Each average lies near its own tensor of the model, not near that of the same lag.

    The average holds the last iterates only. Lags of one or two numbers can lie near each other by
    chance and are left out.
    """
    for c in range(2, len(values) - 1, 2):
        used = slice(c // 2 - 1, None)
        (mine, other), (own, foreign) = (
            tuple(part[used].double() for part in group[c : c + 2]) for group in (values, named)
        )
        kept = (mine - own).square().sum() + (other - foreign).square().sum()
        exchanged = (mine - foreign).square().sum() + (other - own).square().sum()
        if len(mine) > 2 and bool(exchanged < NEARER * kept):
            refuse(
                f"its averages of {_order(len(values))[c]} and {_order(len(values))[c + 1]} stand "
                "in a wrong order: each is nearer to the other's weights"
            )

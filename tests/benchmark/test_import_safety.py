"""Nothing in an imported file runs; the commands say in one line what is wrong."""

import io
import os
import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from solverbench.benchmark.importing import teacher
from solverbench.benchmark.importing.artefacts import NAMES
from solverbench.benchmark.importing.pairs import read_index
from solverbench.benchmark.importing.student import (
    Student,
    import_student,
    read_checkpoint,
)
from solverbench.benchmark.importing.teacher import import_teacher
from solverbench.benchmark.load import load_backbone
from solverbench.cli_import import import_
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau
from solverbench.sources import Source
from solverbench.torchfile import read_any
from tests.benchmark.artefacts import (
    BACKBONES,
    NUM,
    backbone_of,
    checkpoint,
    published,
    trained,
    write,
)
from tests.problems import edm


class Payload:
    """Runs a command when a careless reader meets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


class Hidden:
    """A nested stream that torch's own loader would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (pickle.dumps(Payload()),)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory in which nothing named PWNED may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "PWNED").exists()


HOSTILE: dict[str, Callable[[], Any]] = {
    "a part": lambda: published() | {"condition": Payload()},
    "an entry": lambda: published() | {"condition": [Payload()] * NUM},
    "beside": lambda: published() | {"more": Payload()},
    "a key": lambda: {Payload(): 1},
    "a storage": lambda: published() | {"noise": Hidden()},
    "a factory": lambda: defaultdict(os.getcwd, published()),
    "a weight": lambda: checkpoint(trained("ema")) | {"optim": Payload()},
}


@pytest.mark.parametrize("form", ["pickle", "pickle3", "torch"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_hostile_file_runs(name: str, form: str, empty: Path) -> None:
    path = write(empty / "evil.pkl", HOSTILE[name](), form)
    with pytest.raises(SolverBenchError, match="refused"):
        import_teacher(path, backbone_of("none"), empty / "out")
    with pytest.raises(SolverBenchError, match="refused"):
        import_student(path, edm(), empty / "s.safetensors", Student())  # type: ignore[arg-type]


def test_no_mutation_of_a_file_runs_or_crashes(empty: Path) -> None:
    """Bytes exchanged at random, in the few that are no numbers mostly: 600 files."""
    rng = random.Random(0)
    zipped = io.BytesIO()
    torch.save(checkpoint(trained("ema"), trained("final")), zipped)
    bases = [pickle.dumps(published(kind, num=2)) for kind in BACKBONES]
    bases += [pickle.dumps(checkpoint(trained("ema"))), zipped.getvalue()]
    refused = 0
    for _ in range(600):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.randint(1, 4)):
            data[rng.choice([rng.randrange(len(data)), -rng.randrange(1, 200)])] = rng.choice(
                b"(.)]}aNRbehijtu0\x00\x01\x81\x85\x86\x87\x93\xff"
            )
        for read in (teacher.published, read_checkpoint):
            try:
                read(Source(io.BytesIO(data)))
            except SolverBenchError:
                refused += 1
    assert refused > 600  # no file is both, so one of the two refuses


def test_only_the_names_of_the_layouts_are_allowed() -> None:
    kinds = {(module, kind) for module in ("builtins", "__builtin__") for kind in ("dict", "list")}
    assert set(NAMES) == {("collections", "defaultdict")} | kinds
    for factory in (list, dict, None):
        file = io.BytesIO(pickle.dumps(defaultdict(factory, {"a": 1})))
        assert read_any(Source(file), NAMES) == {"a": 1}
    for call in (b"cbuiltins\nlist\n)R.", b"ccollections\ndefaultdict\nK\x01\x85R."):
        with pytest.raises(SolverBenchError, match="refused"):
            read_any(Source(io.BytesIO(b"\x80\x04" + call)), NAMES)


def test_the_commands_import_and_say_in_one_line_what_is_wrong(empty: Path) -> None:
    runner = CliRunner()
    backbone = load_backbone("digits")
    found = {"noise": backbone.noise(range(20)), "latents": [None] * 20, "condition": [None] * 20}
    found["images"] = 0.3 * found["noise"]
    write(empty / "set.pkl", found)
    teach = ["teacher", "set.pkl", "--backbone", "digits", "--quiet"]
    done = runner.invoke(import_, teach)
    assert done.exit_code == 0, done.output
    assert "20 rows, condition none" in done.output
    assert "our seed 0" in done.output
    assert read_index(Path("teachers/digits")).rows == 20
    again = runner.invoke(import_, teach)
    assert (again.exit_code, again.output.count("\n")) == (2, 1)
    assert again.output.startswith("error: teachers/digits exists")
    loud = runner.invoke(import_, [*teach[:-1], "--out", "other"])
    assert (loud.exit_code, loud.stderr) == (0, "")  # no bar where there is no terminal
    write(empty / "gs.pt", checkpoint(trained("ema")), "torch")
    learn = ["student", "gs.pt", "--backbone", "digits", "--nfe", "3", "--t-min", "1e-3"]
    done = runner.invoke(import_, learn)
    assert done.exit_code == 0, done.output
    assert "GS, 3 NFE, weights ema of step 50, ends at t = 0.001" in done.output
    assert Tableau.load(empty / "gs.safetensors").nfe == 3
    wrong = runner.invoke(import_, ["student", "set.pkl", "--backbone", "digits"])
    assert (wrong.exit_code, wrong.output.count("\n")) == (2, 1)

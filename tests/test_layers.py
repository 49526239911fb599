"""The direction of imports, read from the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import solverbench

PACKAGE = Path(solverbench.__file__).parent
LEAVES = {
    f"solverbench.{name}"
    for name in (
        "byte_sizes",
        "discriminator",
        "discriminator_layers",
        "errors",
        "files",
        "images",
        "published_discriminator",
        "registry",
        "schedule",
        "sources",
        "stages",
        "stored_schedules",
        "tensorfile",
        "torchfile",
        "unpickle",
        "transfer",
        "weights",
        "weights_catalogue",
    )
}
CONTRACTS = {
    "solverbench.solvers.base",
    "solverbench.solvers.fitting",
    "solverbench.solvers.replay",
    "solverbench.solvers.schedules",
    "solverbench.solvers.tableau",
    "solverbench.backbones.base",
}
RECORDS = {f"solverbench.benchmark.{name}" for name in ("results", "spec", "store")}
SHELL = {
    "cli",
    "cli_import",
    "cli_parts",
    "cli_compare",
    "cli_leaderboard",
    "cli_measure",
    "cli_paper",
    "cli_profile",
    "cli_verify",
    "cli_weights",
    "converting",
    "inspecting",
    "inventory",
    "making",
    "papers",
    "pictures",
    "profiling",
    "progress",
    "reporting",
    "traces",
    "validating",
    "verifying",
    "commands",
}  # commands and their parts
TRAINING = {"solverbench.backbones.recipes", "solverbench.backbones.extractor"}
READERS = {f"solverbench.backbones.{name}" for name in ("edm_files", "ldm_files", "sd_files")}
BEYOND = {"making": TRAINING, "converting": READERS, "inspecting": READERS}
ROOMS = {
    "solvers": LEAVES,
    "backbones": LEAVES,
    "benchmark": LEAVES | CONTRACTS,
    "baselines": {"solverbench.benchmark.spec", "solverbench.errors"},
    "leaderboards": RECORDS | {"solverbench.baselines.published", "solverbench.errors"},
}
THIRD_PARTY = {"PIL", "click", "numpy", "pydantic", "rich", "safetensors", "torch", "yaml"}
QUICK = [
    "solverbench",
    "solverbench.cli",
    "solverbench.registry",
    "solverbench.baselines.recipe",
    "solverbench.baselines.published",
    "solverbench.benchmark.store",
    "solverbench.benchmark.worker",
    "solverbench.leaderboards.boards",
    "solverbench.leaderboards.notes",
    "solverbench.leaderboards.render",
    "solverbench.leaderboards.tables",
    "solverbench.leaderboards.views",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def targets(node: ast.AST) -> Iterator[str]:
    """What an import statement names; a name of a package that is a module counts as that."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from {name if name in MODULES else str(node.module) for name in inner}


def imports(name: str) -> set[str]:
    """Everything that a module imports, inside functions too."""
    tree = ast.parse(MODULES[name].read_text())
    return {target for node in ast.walk(tree) for target in targets(node)}


def ours(name: str) -> set[str]:
    return {target for target in imports(name) if target.partition(".")[0] == "solverbench"}


def top_level(body: list[ast.stmt]) -> Iterator[str]:
    """What is imported when a module is; types alone are not."""
    for node in body:
        yield from targets(node)
        if isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from top_level(node.body)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def inside(room: str) -> list[str]:
    return [name for name in MODULES if room_of(name) == room]


def test_every_module_belongs_to_a_known_room() -> None:
    leaves = {leaf.partition(".")[2] for leaf in LEAVES}
    assert {room_of(name) for name in MODULES} - leaves - SHELL - set(ROOMS) - {""} == set()


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_leaves_only(leaf: str) -> None:
    assert ours(leaf) - LEAVES - {"solverbench"} == set()


@pytest.mark.parametrize(("room", "allowed"), ROOMS.items())
def test_rooms_import_themselves_and_what_the_table_allows(room: str, allowed: set[str]) -> None:
    wrong = {
        name: bad
        for name in inside(room)
        if (bad := {t for t in ours(name) if t not in allowed and room_of(t) != room})
    }
    assert wrong == {}


def test_solvers_and_backbones_never_import_each_other() -> None:
    for one, other in (("solvers", "backbones"), ("backbones", "solvers")):
        assert [n for n in inside(one) if any(room_of(t) == other for t in ours(n))] == []


def test_commands_reach_solvers_and_backbones_through_the_registry_only() -> None:
    allowed = {name: CONTRACTS | BEYOND.get(name, set()) for name in SHELL}
    wrong = {
        name: bad
        for name in sorted(SHELL)
        if f"solverbench.{name}" in MODULES
        and (
            bad := {
                t
                for t in ours(f"solverbench.{name}")
                if room_of(t) in ("solvers", "backbones") and t not in allowed[name]
            }
        )
    }
    assert wrong == {}


def test_leaderboards_never_import_torch() -> None:
    assert [n for n in inside("leaderboards") if any("torch" in t for t in imports(n))] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_optional_libraries_are_imported_inside_functions(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    roots = {target.partition(".")[0] for target in top_level(tree.body)}
    assert roots - THIRD_PARTY - sys.stdlib_module_names - {"solverbench"} == set()


def test_no_module_can_load_a_pickle() -> None:
    forbidden = {"pickle", "dill", "joblib", "cloudpickle"}
    assert [n for n in MODULES if {t.partition(".")[0] for t in imports(n)} & forbidden] == []


def test_files_stay_short() -> None:
    long = {n: k for n, p in MODULES.items() if (k := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_what_needs_no_network_starts_without_torch() -> None:
    """One process for all: the first module that pulls torch in is named."""
    script = (
        "import importlib, sys\n"
        f"for name in {QUICK!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

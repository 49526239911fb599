"""Rows of teacher sets that are read or made when asked for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.benchmark import rows, sampling
from solverbench.benchmark.importing import teacher
from solverbench.benchmark.importing.pairs import read_pairs
from solverbench.benchmark.importing.teacher import import_teacher
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.rows import LazyRows, SeededRows, StoredRows
from solverbench.benchmark.run import Run
from solverbench.benchmark.sampling import sample_seeds
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau
from tests.benchmark.artefacts import NUM, backbone_of, published, write
from tests.benchmark.cells import FIT, cell

FORM = "solverbench-test-1"
Store = tuple[StoredRows, Tensor, list[Path]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three files, of which not all rows belong to the set, and what the set holds."""
    rng = torch.Generator().manual_seed(0)
    parts, wanted, paths = [], [], []
    for number, held in enumerate((range(2, 7), range(7), range(3))):
        values, path = torch.randn(7, 2, 3, 3, generator=rng), tmp_path / f"{number}.safetensors"
        tensorfile.write(path, FORM, {"a": torch.zeros(5), "states": values}, {})
        places, _ = tensorfile.examine(path, FORM)
        parts.append((places["states"], held))
        wanted.append(values[held.start : held.stop])
        paths.append(path)
    return StoredRows(parts), torch.cat(wanted), paths


ASKED: list[slice | Tensor] = [
    slice(None),
    slice(4, 6),
    slice(-2, None),
    slice(1, 99, 3),
    slice(3, 3),
    torch.tensor([14, 0, 5, 5, 11, 4]),
    torch.tensor([], dtype=torch.int64),
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_stored_rows_are_indexed_as_the_tensor_they_stand_for(
    store: Store, asked: slice | Tensor
) -> None:
    lazy, whole, _ = store
    assert len(lazy) == len(whole) == 15
    assert lazy.shape == whole.shape
    assert lazy[asked].dtype == torch.float32
    assert torch.equal(lazy[asked], whole[asked])


def test_iterating_gives_row_after_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "AT_ONCE", 4)
    assert torch.equal(torch.stack(list(store[0])), store[1])


@pytest.mark.parametrize("asked", [[15], [-1], [True, False], [[0]], [0.0]], ids=str)
def test_rows_that_are_not_there_are_an_index_error(store: Store, asked: list[object]) -> None:
    with pytest.raises(IndexError, match="rows"):
        store[0][torch.tensor(asked)]


def test_seeded_rows_have_the_bits_of_the_noise() -> None:
    backbone, seeds = load_backbone("digits"), range(50_000, 50_009)
    lazy, whole = SeededRows(backbone, seeds), backbone.noise(seeds)
    for asked in (slice(None), slice(2, 5), slice(0, 0), torch.tensor([8, 0, 3])):
        assert torch.equal(lazy[asked], whole[asked])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_nothing_stays_open_or_mapped_after_reading(store: Store) -> None:
    lazy, _, paths = store
    kept = lazy[torch.arange(15)]
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
    opened = {str(link.readlink()) for link in links if link.is_symlink()}
    maps = Path("/proc/self/maps").read_text()
    assert len(kept) == 15
    assert not any(str(path) in maps or str(path) in opened for path in paths)


def _rewritten(path: Path) -> None:
    tensors, facts = tensorfile.read(path, FORM)
    tensorfile.write(path, FORM, tensors, facts)


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": _rewritten,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 4),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_file_that_changes_while_in_use_is_one_line_that_names_it(
    store: Store, change: str
) -> None:
    lazy, whole, paths = store
    CHANGES[change](paths[1])
    assert torch.equal(lazy[:5], whole[:5])  # of another file
    with pytest.raises(SolverBenchError, match=r"1\.safetensors (was changed|cannot be read)") as e:
        lazy[:6]
    assert "\n" not in str(e.value)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of any size stay on the disk."""
    monkeypatch.setattr(rows, "IN_MEMORY", 0)


def test_samples_on_the_disk_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("digits")
    tableau = load_solver("dpmpp-2m", backbone, 4).tableau().detach()
    small = sample_seeds(tmp_path, backbone, tableau, range(23), 2)
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    large = sample_seeds(tmp_path, backbone, tableau, range(23), 2)
    assert isinstance(small.states, Tensor)
    assert isinstance(small.noise, Tensor)
    assert isinstance(large.states, StoredRows)
    assert isinstance(large.noise, SeededRows)
    assert torch.equal(small.states, large.states[:])
    assert torch.equal(small.noise, large.noise[:])
    small_facts, large_facts = (
        (s.nfe, s.network_rows, s.seconds_per_image, s.peak_bytes) for s in (small, large)
    )
    assert small_facts == large_facts


def test_imported_rows_on_the_disk_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "SHARD", 1 << 16)  # some 40 rows
    backbone = backbone_of("class")
    import_teacher(write(tmp_path / "set.pkl", published("class")), backbone, tmp_path / "out")
    small = read_pairs(tmp_path / "out", backbone, range(37, 195))
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    large = read_pairs(tmp_path / "out", backbone, range(37, 195))
    assert isinstance(large.noise, LazyRows)
    assert isinstance(large.states, LazyRows)
    assert torch.equal(large.noise[:], small.noise[:])
    assert torch.equal(large.states[:], small.states[:])
    assert small.condition is not None
    assert large.condition is not None
    assert torch.equal(large.condition.labels, small.condition.labels)


def test_a_cell_whose_sets_stay_on_the_disk_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = cell("gs", 3, FIT, metrics=("fd", "rmse-teacher"))
    small = Run(spec, tmp_path / "small")
    known = small.execute()
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    large = Run(spec, tmp_path / "large")
    found = large.execute()
    assert found.status == "ok", found.reason
    curves = [run.path.with_suffix(".fit.jsonl").read_text() for run in (small, large)]
    assert curves[0] == curves[1]
    assert torch.equal(Tableau.load(small.tableau_path).A, Tableau.load(large.tableau_path).A)
    assert found.metrics == known.metrics


@pytest.mark.parametrize("damage", ["flipped", "torn"])
def test_a_damaged_block_of_a_large_set_is_found_before_it_is_used(
    damage: str, tmp_path: Path, no_memory: None
) -> None:
    backbone = load_backbone("digits")
    tableau = load_solver("dpmpp-2m", backbone, 4).tableau().detach()
    sample_seeds(tmp_path, backbone, tableau, range(23), 2)
    block = sorted(tmp_path.iterdir())[1]
    data = block.read_bytes()
    block.write_bytes(data[:-9] if damage == "torn" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SolverBenchError, match=f"{block.name} (is damaged|cannot be read)"):
        sample_seeds(tmp_path, backbone, tableau, range(23), 2)


def test_a_block_that_another_process_made_first_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who made it may be reading it, and a file that changes while in use ends a run."""
    backbone = load_backbone("digits")
    tableau = load_solver("dpmpp-2m", backbone, 4).tableau().detach()
    first = sample_seeds(tmp_path / "own", backbone, tableau, range(4), 4)
    (made,) = (tmp_path / "own").iterdir()
    other, sample = tmp_path / "shared" / made.name, sampling.sample

    def overtaken(*args: object) -> Tensor:
        if not other.exists():
            other.parent.mkdir(exist_ok=True)
            other.hardlink_to(made)
        return sample(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sampling, "sample", overtaken)
    again = sample_seeds(tmp_path / "shared", backbone, tableau, range(4), 4)
    assert other.samefile(made)
    assert torch.equal(first.states[:], again.states[:])


def test_sets_of_the_size_of_the_default_tables_stay_in_memory_and_large_ones_do_not() -> None:
    assert rows.stays(2_000, (3, 16, 16))
    assert rows.stays(1_400, (3, 32, 32))
    assert not rows.stays(50_000, (3, 32, 32))


@pytest.mark.parametrize("kind", ["none", "class", "prompt"])
def test_a_teacher_set_holds_states_and_labels_and_nothing_that_follows_from_them(
    kind: str, tmp_path: Path
) -> None:
    """No decoded image and no embedding of a prompt: those are made from labels, once a prompt."""
    backbone = backbone_of(kind)
    import_teacher(write(tmp_path / "set.pkl", published(kind)), backbone, tmp_path / "out")
    places, _ = tensorfile.examine(tmp_path / "out" / f"{0:08d}.safetensors", "solverbench-pairs-1")
    shape = (NUM, *backbone.state_shape)
    held = {"noise": shape, "states": shape} | ({"labels": (NUM,)} if kind != "none" else {})
    assert {name: place.shape for name, place in places.items()} == held


def test_our_own_teacher_set_holds_final_states_alone(tmp_path: Path) -> None:
    """Neither noise, which follows from the seeds, nor images, which follow from the states."""
    backbone = backbone_of("prompt")
    tableau = load_solver("ddim", backbone, 3).tableau().detach()

    def no_decoding(x: Tensor) -> Tensor:
        raise AssertionError("states are kept")

    backbone.decode = no_decoding  # type: ignore[method-assign]
    sample_seeds(tmp_path, backbone, tableau, range(6), 6)
    (block,) = tmp_path.iterdir()
    places, _ = tensorfile.examine(block, sampling.FORMAT)
    assert {name: place.shape for name, place in places.items()} == {
        "states": (6, *backbone.state_shape)
    }

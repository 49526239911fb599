from pathlib import Path

import pytest
import torch

from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.sampling import BLOCK, sample_seeds
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau

SEEDS = range(50_000, 50_040)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("digits")


@pytest.fixture(scope="module")
def tableau(backbone: Backbone) -> Tableau:
    return load_solver("dpmpp-2m", backbone, 4).tableau().detach()


def test_the_batch_size_changes_samples_by_rounding_and_noise_not_at_all(
    backbone: Backbone, tableau: Tableau, tmp_path: Path
) -> None:
    sets = [sample_seeds(tmp_path / str(b), backbone, tableau, SEEDS, b) for b in (3, 10, 40)]
    for other in sets[:-1]:
        assert torch.equal(other.noise, sets[-1].noise)
        gap = (other.states - sets[-1].states).abs().max() / sets[-1].states.abs().max()
        assert float(gap) < 1e-5  # float32: convolutions of other batch sizes add in another order


def test_conditions_follow_the_seeds_in_any_batch() -> None:
    backbone = load_backbone("digits")
    kind = type("Labelled", (type(backbone),), {"num_classes": 10})
    condition = kind.condition(backbone, [7, 50_013])
    assert condition is None  # digits have no classes
    labelled = kind.__new__(kind)
    assert labelled.condition([7, 50_013]).labels.tolist() == [7, 3]
    assert labelled.condition([50_013]).labels.tolist() == [3]


def test_what_sampling_cost_is_counted(
    backbone: Backbone, tableau: Tableau, tmp_path: Path
) -> None:
    found = sample_seeds(tmp_path, backbone, tableau, SEEDS, 7)
    assert (found.nfe, found.network_rows) == (4, 4.0)
    assert found.seconds_per_image > 0
    assert found.states.shape == (40, *backbone.state_shape)
    assert found.states.dtype == torch.float32


def test_blocks_of_a_former_run_are_taken_over_and_only_missing_ones_are_made(
    backbone: Backbone, tableau: Tableau, tmp_path: Path
) -> None:
    first = sample_seeds(tmp_path, backbone, tableau, SEEDS, 2)
    blocks = sorted(tmp_path.glob("*.safetensors"))
    assert len(blocks) == len(SEEDS) / (2 * BLOCK)
    kept = {p: p.stat().st_mtime_ns for p in blocks if p != blocks[1]}
    blocks[1].unlink()
    again = sample_seeds(tmp_path, backbone, tableau, SEEDS, 2)
    assert torch.equal(first.states, again.states)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_progress_is_told_batch_by_batch_up_to_the_end(
    backbone: Backbone, tableau: Tableau, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    sample_seeds(tmp_path, backbone, tableau, SEEDS, 10, lambda *step: told.append(step))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0] == (10, 40)
    assert told[-1] == (40, 40)


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty", "foreign"])
def test_a_damaged_block_is_one_line_that_names_it(
    backbone: Backbone, tableau: Tableau, tmp_path: Path, damage: str
) -> None:
    sample_seeds(tmp_path, backbone, tableau, SEEDS[:4], 4)
    (block,) = tmp_path.iterdir()
    data = block.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    tableau.save(tmp_path / "other")
    foreign = (tmp_path / "other").read_bytes()
    written = {"flipped": flipped, "torn": data[:-9], "empty": b"", "foreign": foreign}
    block.write_bytes(written[damage])
    with pytest.raises(SolverBenchError) as caught:
        sample_seeds(tmp_path, backbone, tableau, SEEDS[:4], 4)
    assert str(block) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_of_another_solver_are_not_taken_for_this_one(
    backbone: Backbone, tableau: Tableau, tmp_path: Path
) -> None:
    sample_seeds(tmp_path, backbone, tableau, SEEDS[:4], 4)
    other = load_solver("ddim", backbone, 4).tableau().detach()
    with pytest.raises(SolverBenchError, match=r"was made from another key; remove .* run again"):
        sample_seeds(tmp_path, backbone, other, SEEDS[:4], 4)

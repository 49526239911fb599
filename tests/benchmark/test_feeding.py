"""Batches on their way to the device, with a thread that reads ahead and without."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench.backbones.base import Backbone, Condition
from solverbench.benchmark import training
from solverbench.benchmark.distances import L2
from solverbench.benchmark.feeding import Feed, shuffled
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.rows import LazyRows
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.errors import SolverBenchError
from solverbench.solvers.base import LearnableSolver
from solverbench.stages import PREFIX

CPU = torch.device("cpu")


class Told(LazyRows):
    """A tensor that remembers who read which rows."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__(whole.shape)
        self.whole, self.told = whole, list[tuple[str, list[int]]]()

    def _read(self, rows: Tensor) -> Tensor:
        if 13 in rows:
            raise SolverBenchError("row 13 is gone")
        self.told.append((threading.current_thread().name.partition("_")[0], rows.tolist()))
        return self.whole[rows]


@pytest.fixture
def samples() -> Samples:
    whole = torch.randn(14, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    condition = Condition(torch.arange(14))
    return Samples(range(14), Told(whole), Told(-whole), condition, 0.0, 0, 0.0, 0)


def told(samples: Samples) -> list[tuple[str, list[int]]]:
    assert isinstance(samples.states, Told)
    return samples.states.told


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_the_rows_that_are_asked_for(samples: Samples, ahead: bool) -> None:
    feed = Feed(samples, CPU, ahead)
    plan = [torch.tensor(rows) for rows in ([3, 1], [0, 5], [7, 2], [4, 4])]
    for rows, then in zip(plan, [*plan[1:], None], strict=True):
        batch = feed.batch(rows, then)
        assert isinstance(samples.noise, Told)
        assert torch.equal(batch.noise, samples.noise.whole[rows])
        assert torch.equal(batch.target, -batch.noise)
        assert torch.equal(batch.condition.labels, rows)
        assert batch.rows is rows
    assert [rows for _, rows in told(samples)] == [rows.tolist() for rows in plan]
    readers = [name for name, _ in told(samples)]
    assert readers == ["MainThread", *["feed" if ahead else "MainThread"] * 3]


def test_the_next_batch_is_read_while_this_one_is_used(samples: Samples) -> None:
    feed = Feed(samples, CPU, True)
    feed.batch(torch.tensor([0]), torch.tensor([1]))
    assert feed.next is not None
    feed.next[1].result(timeout=60)  # with no further call
    assert told(samples)[-1] == ("feed", [1])


def test_a_batch_out_of_turn_leaves_what_was_read_ahead_for_its_turn(samples: Samples) -> None:
    feed, first, then = Feed(samples, CPU, True), torch.tensor([0]), torch.tensor([1])
    feed.batch(first, then)
    assert feed.batch(torch.tensor([9])).rows.tolist() == [9]  # drawn by a rule
    feed.batch(then)
    assert sorted(rows for _, rows in told(samples)) == [[0], [1], [9]]


def test_other_rows_than_were_told_are_read_anew(samples: Samples) -> None:
    """As in a fit that goes on from a checkpoint."""
    feed = Feed(samples, CPU, True)
    feed.batch(torch.tensor([0]), torch.tensor([1]))
    batch = feed.batch(torch.tensor([6, 2]), torch.tensor([3]))
    assert isinstance(samples.noise, Told)
    assert torch.equal(batch.noise, samples.noise.whole[[6, 2]])
    assert torch.equal(feed.batch(torch.tensor([3])).noise, samples.noise.whole[[3]])


@pytest.mark.parametrize("ahead", [False, True])
def test_what_goes_wrong_in_reading_is_raised_where_the_batch_is_asked_for(
    samples: Samples, ahead: bool
) -> None:
    feed = Feed(samples, CPU, ahead)
    feed.batch(torch.tensor([0]), torch.tensor([13]))
    with pytest.raises(SolverBenchError, match="row 13 is gone"):
        feed.batch(torch.tensor([13]))


@pytest.mark.parametrize("ahead", [False, True])
def test_in_order_every_row_comes_once(samples: Samples, ahead: bool) -> None:
    feed = Feed(replace(samples, states=samples.states[:13], noise=samples.noise[:13]), CPU, ahead)
    sizes = [batch.rows.tolist() for batch in feed.in_order(5)]
    assert sizes == [list(range(5)), list(range(5, 10)), [10, 11, 12]]


def test_epochs_are_shuffled_by_seed_and_number_alone() -> None:
    one = shuffled(30, 0, 1)
    assert sorted(one.tolist()) == list(range(30))
    shuffled.cache_clear()
    assert torch.equal(one, shuffled(30, 0, 1))
    assert not any(torch.equal(one, other) for other in (shuffled(30, 0, 2), shuffled(30, 1, 1)))


def test_nothing_is_drawn_from_any_generator(samples: Samples) -> None:
    before = torch.get_rng_state()
    feed = Feed(samples, CPU, True)
    feed.batch(torch.tensor([0]), torch.tensor([1]))
    feed.batch(torch.tensor([1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_waiting_is_a_range_of_the_profile(samples: Samples) -> None:
    feed = Feed(samples, CPU)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        feed.batch(torch.tensor([0]), torch.tensor([1]))
    assert [e.count for e in profile.key_averages() if e.key == f"{PREFIX}waiting"] == [1]


def test_on_the_cpu_no_thread_is_started(samples: Samples) -> None:
    assert Feed(samples, CPU).thread is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_on_cuda_have_the_bits_of_the_host(samples: Samples, ahead: bool) -> None:
    """The next batch is copied while the device is busy, and the one in use is not written over."""
    device, plan = torch.device("cuda"), [torch.tensor([i, 12 - i]) for i in range(12)]
    feed, busy, held = Feed(samples, device, ahead), torch.randn(2000, 2000, device="cuda"), []
    for rows, then in zip(plan, [*plan[1:], None], strict=True):
        busy = busy @ busy / 2000
        batch = feed.batch(rows, then)
        held.append((rows, 2 * batch.noise, 2 * batch.target))
        assert batch.noise.is_cuda
    assert isinstance(samples.noise, Told)
    for rows, noise, target in held:
        assert torch.equal(noise.cpu(), 2 * samples.noise.whole[rows])
        assert torch.equal(target.cpu(), -noise.cpu())


@pytest.mark.parametrize("name", ["gs", "gas"])
def test_a_fit_that_reads_ahead_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across epochs, validations, draws of a rule and a checkpoint in the middle."""
    backbone = load_backbone("digits")
    noise = backbone.noise(range(22))
    pairs = Samples(range(22), noise, 0.1 * noise, None, 0.0, 3, 3.0, 0)
    spec = FitSpec(iterations=7, batch=4, train_size=22, validation_size=22, validate_every=2)
    found = []
    for ahead in (False, True):
        monkeypatch.setattr(training, "Feed", partial(Feed, ahead=ahead))
        lesson = Lesson(spec, 0, backbone, L2(backbone), pairs, pairs)
        torch.manual_seed(0)
        before = Fit(learner(name, backbone), lesson)
        for _ in range(3):
            before.advance()
        before.save(tmp_path / str(ahead) / "fit.safetensors")
        fit = Fit(learner(name, backbone), lesson)
        tableau = fit.run(tmp_path / str(ahead))
        found.append((tableau.A, (tmp_path / str(ahead) / "fit.jsonl").read_text()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def learner(name: str, backbone: Backbone) -> LearnableSolver:
    options = {"warm_start": 0.2, "disc_warmup": 0.3} if name == "gas" else {}
    solver = load_solver(name, backbone, 3, **options)
    assert isinstance(solver, LearnableSolver)
    return solver

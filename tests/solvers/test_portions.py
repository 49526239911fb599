"""A batch in parts: equal gradients, and a way out where memory ends."""

from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.solvers import Batch, FitTask, Tableau, sample
from solverbench.solvers.fitting import Portions
from solverbench.solvers.gas import GAS
from solverbench.solvers.gs import GS
from solverbench.solvers.ld3 import LD3UniPC
from tests.problems import bound

METHODS = {
    "gs": (GS, {}),
    "gas": (GAS, {"disc_lr": 1e-3}),
    "ld3": (LD3UniPC, {"radius": 0.05}),
}
NUM, STEPS = 5, 3
ROUNDING = 1e-10  # float64, and Adam's division by small gradients


def l2(student: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().flatten(1).mean(1)


def trained(
    name: str, size: int | None, limit: int = 99, joint: bool = False
) -> tuple[dict[str, Tensor], Portions]:
    """Three steps on five pairs; passes of more rows than ``limit`` are out of memory."""
    backbone, portions = Gaussian(shape=(1, 8, 8)), Portions(size)
    kind, options = METHODS[name]
    solver = bound(kind, backbone, 3, **options)

    def check(num: int) -> None:
        if num > limit:
            raise torch.OutOfMemoryError("made up")

    def run(tableau: Tableau, noise: Tensor, condition: Any) -> Tensor:
        check(len(noise))
        return sample(backbone, tableau, noise, condition, "recompute")

    def beside(tableau: Tableau, batch: Batch, others: Batch) -> tuple[Tensor, Tensor]:
        check(len(batch) + len(others))
        noise = torch.cat([batch.noise, others.noise])
        states = sample(backbone, tableau, noise, None, "recompute", beside=len(others))
        return states[: len(batch)], states[len(batch) :].detach()

    rng = torch.Generator().manual_seed(7)
    facts = {"iterations": 10, "num_train": NUM, "num_validation": NUM, "portions": portions}
    task = FitTask(run, l2, 1e-3, 1.0, rng, beside=beside if joint else None, **facts)  # type: ignore[arg-type]
    rule, found = solver.rule(task), dict[str, Tensor]()
    noise = backbone.noise(range(NUM)).double()
    batch = Batch(noise, 0.3 * noise.flip(0), None, torch.arange(NUM))
    for step in range(STEPS):
        found |= {f"{key} {step}": value for key, value in rule.step(batch, 1.0).items()}
    found |= rule.state()
    return found | solver.state_dict(), portions


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=ROUNDING, atol=ROUNDING, msg=key)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_train_like_the_whole(name: str, size: int) -> None:
    assert_close(trained(name, size)[0], trained(name, None)[0])


@pytest.mark.parametrize("size", [None, 2])
def test_fakes_beside_the_student_change_nothing(size: int | None) -> None:
    assert_close(trained("gas", size, joint=True)[0], trained("gas", None)[0])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("limit", "size", "halved"), [(3, 2, 1), (1, 1, 2)])
def test_where_memory_ends_the_batch_is_split(
    name: str, limit: int, size: int, halved: int
) -> None:
    found, portions = trained(name, None, limit)
    assert_close(found, trained(name, None)[0])
    assert (portions.size, portions.halved) == (size, halved)


def test_fakes_go_alone_where_both_are_too_much() -> None:
    found, portions = trained("gas", None, limit=NUM, joint=True)
    assert_close(found, trained("gas", None)[0])
    assert (portions.size, portions.halved) == (None, 1)  # counted, and not tried again


def test_one_pair_that_is_too_much_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained("gs", None, limit=0)


def test_parts_hold_all_pairs_in_order() -> None:
    noise = torch.arange(5.0).reshape(5, 1, 1, 1)
    batch = Batch(noise, 2 * noise, None, torch.arange(5), validates=True)
    parts = batch.parts(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.target for part in parts]), batch.target)
    assert torch.equal(torch.cat([part.rows for part in parts]), batch.rows)
    assert all(part.validates for part in parts)
    assert batch.parts(5)[0] is batch


@pytest.mark.parametrize("limit", [1, 3])
def test_the_noise_of_validation_pairs_moves_by_the_whole_batch_whatever_fits(limit: int) -> None:
    """LD3 moves it along the gradient of a mean over the batch, which parts must not change."""
    found = []
    for most in (99, limit):
        backbone, portions = Gaussian(shape=(1, 8, 8)), Portions()

        def run(
            tableau: Tableau, noise: Tensor, condition: Any, most: int = most, on: Any = backbone
        ) -> Tensor:
            if len(noise) > most:
                raise torch.OutOfMemoryError("made up")
            return sample(on, tableau, noise, condition)

        facts = {"num_train": NUM, "num_validation": NUM, "portions": portions}
        task = FitTask(run, l2, 1e-3, 1.0, torch.Generator().manual_seed(7), **facts)  # type: ignore[arg-type]
        rule = bound(LD3UniPC, backbone, 3, radius=0.05).rule(task)
        noise = backbone.noise(range(NUM)).double()
        batch = Batch(noise, 0.3 * noise.flip(0), None, torch.arange(NUM), validates=True)
        rule.round_ended([batch])
        found.append(rule.state())
    assert portions.halved > 0
    assert_close(found[1], found[0])

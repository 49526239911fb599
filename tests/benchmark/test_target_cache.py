"""Kept features of the teacher: the same distances, a budget that holds, bits that resume."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from solverbench.benchmark.distances import L1, L2, Distance, Feature
from solverbench.benchmark.lpips import STAGES, LPIPSNative, Trunk
from solverbench.benchmark.spec import LATER, FitSpec
from solverbench.benchmark.target_cache import TargetCache, size_of
from solverbench.errors import SolverBenchError

NUM, SIDE, BATCH = 10, 16, 4


class Pixels:
    """States are images."""

    def decode(self, x: Tensor) -> Tensor:
        return x


class NoImages:
    """States that nobody may decode."""

    def decode(self, x: Tensor) -> Tensor:
        raise AssertionError("a distance of states decoded them")


class Counting(nn.Module):
    """A network that notes how many rows it sees and whether with a graph."""

    def __init__(self, inner: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append((len(images), images.requires_grad))
        return self.inner(images)


class Small(nn.Module):
    """Two stages of random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.one(images).relu()
        return [first, self.two(first).relu()]


def states(seed: int, num: int = NUM) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, SIDE, SIDE, generator=rng) * 2 - 1


def feature() -> Feature:
    made = Feature.__new__(Feature)
    Distance.__init__(made, Pixels())
    made.stages = Counting(Small())
    return made


def lpips_native() -> LPIPSNative:
    heads = [torch.full((1, stage[-1], 1, 1), 0.1) for stage in STAGES]
    return LPIPSNative(Pixels(), trunk=Counting(Trunk()), heads=heads)


@pytest.fixture(params=[feature, lpips_native], ids=["feature", "lpips-native"])
def distance(request: pytest.FixtureRequest) -> Feature | LPIPSNative:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param()


def seen(distance: Distance) -> list[tuple[int, bool]]:
    """Rows of each pass since the last look, and whether it had a graph."""
    network = distance.stages if isinstance(distance, Feature) else distance.trunk
    found, network.seen = network.seen, []
    return found


def row_bytes(distance: Distance) -> int:
    found = size_of(distance.embed(states(0, 1)))
    seen(distance)
    return found


def value_and_gradient(
    compare: Callable[[Tensor], Tensor], student: Tensor
) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    found = compare(student)
    return found.detach(), torch.autograd.grad(found.sum(), student)[0]


def trained(
    distance: Distance, cache_of: Callable[[int], TargetCache | None], dtype: torch.dtype
) -> Tensor:
    """What six Adam steps make of an image added to all; ``cache_of`` is asked at each step."""
    shift = torch.full((3, SIDE, SIDE), 0.1, dtype=dtype, requires_grad=True)
    noise, target = states(1).to(dtype), states(2).to(dtype)
    optimiser = torch.optim.Adam([shift], lr=1e-2)
    rng = torch.Generator().manual_seed(0)
    for step in range(6):
        rows, cache = torch.randperm(NUM, generator=rng)[:BATCH], cache_of(step)
        student = noise[rows] + shift
        loss = (
            distance(student, target[rows])
            if cache is None
            else cache.distances(student, target[rows], rows)
        )
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    return shift.detach()


def test_only_the_student_passes_the_network_once_a_row_is_kept(
    distance: Feature | LPIPSNative,
) -> None:
    cache = TargetCache(distance, NUM * row_bytes(distance))
    student, target, rows = states(1).requires_grad_(), states(2), torch.tensor([3, 1, 4])
    cache.distances(student[rows], target[rows], rows)
    first = seen(distance)
    assert [graph for _, graph in first] == [False] * (len(first) - 1) + [True]
    rows = torch.tensor([4, 3, 3])
    cache.distances(student[rows], target[rows], rows)
    assert seen(distance) == [(3, True)]
    assert sorted(cache.kept) == [1, 3, 4]


def test_distances_and_gradients_equal_those_without_a_cache(
    distance: Feature | LPIPSNative,
) -> None:
    """Every row kept, some, each one time after another: rounding of float32 convolutions."""
    student, target, each = states(1), states(2), row_bytes(distance)
    rows = torch.tensor([7, 0, 5, 0])
    wanted = value_and_gradient(lambda x: distance(x, target[rows]), student[rows])
    for budget in (NUM * each, 6 * each, each):
        cache = TargetCache(distance, budget)
        for _ in range(2):
            found = value_and_gradient(
                lambda x, c=cache: c.distances(x, target[rows], rows), student[rows]
            )
            torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0)
            assert (found[1] - wanted[1]).norm() < 1e-4 * wanted[1].norm()


def test_the_budget_holds_and_the_first_places_are_kept(distance: Feature | LPIPSNative) -> None:
    budget = 3 * row_bytes(distance) + 1
    for order in (torch.arange(NUM), torch.arange(NUM).flip(0)):
        cache = TargetCache(distance, budget)
        for rows in order.split(BATCH):
            cache.distances(states(1)[rows], states(2)[rows], rows)
        assert sorted(cache.kept) == [0, 1, 2]
        assert cache.num_bytes == 3 * row_bytes(distance) <= budget


def test_bfloat16_holds_twice_the_rows_and_moves_distances_by_its_rounding(
    distance: Feature | LPIPSNative,
) -> None:
    """Kept or not, a row has the same distance but for float32 rounding; 8 bits move it by 1 %."""
    target, rows, budget = states(2), torch.arange(NUM), 2 * row_bytes(distance)
    cache = TargetCache(distance, budget, "bfloat16")
    found = cache.distances(states(1), target, rows)
    assert (len(cache.kept), cache.num_bytes) == (4, budget)
    torch.testing.assert_close(found, distance(states(1), target), rtol=0.01, atol=0)
    assert not torch.equal(found, distance(states(1), target))
    whole = TargetCache(distance, 2 * NUM * budget, "bfloat16").distances(states(1), target, rows)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=0)  # a float32 bit can turn one of 8


def test_what_is_kept_of_a_row_does_not_depend_on_the_rows_beside_it(
    distance: Feature | LPIPSNative,
) -> None:
    """Convolutions of one image and of several round differently on many processors."""
    cache, target = TargetCache(distance, NUM * row_bytes(distance)), states(2)
    for rows in torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1, 2, 3]), torch.tensor([9, 8]):
        cache.distances(states(1)[rows], target[rows], rows)
    for place, kept in cache.kept.items():
        alone = distance.embed(target[place : place + 1])
        assert all(torch.equal(a, b) for a, b in zip(kept, alone, strict=True))


@pytest.mark.parametrize("kept", [NUM, NUM // 2])
def test_a_cache_lost_in_the_middle_changes_no_bit_of_a_training(
    distance: Feature | LPIPSNative, kept: int
) -> None:
    """What a killed run does: the rest of its steps with an empty cache."""
    budget = kept * row_bytes(distance)
    whole = TargetCache(distance, budget)
    calm = trained(distance, lambda step: whole, torch.float32)
    caches = [TargetCache(distance, budget) for _ in range(2)]
    again = trained(distance, lambda step: caches[step >= 3], torch.float32)
    assert torch.equal(again, calm)


def test_training_with_a_cache_is_training_without_it_up_to_rounding(
    distance: Feature | LPIPSNative,
) -> None:
    """Adam's first steps have length 1e-2 whatever the gradient, so 6e-2 in all; float32 noise."""
    cache = TargetCache(distance, NUM * row_bytes(distance))
    found = trained(distance, lambda step: cache, torch.float64)
    plain = trained(distance, lambda step: None, torch.float64)
    assert float((found - plain).abs().mean()) < 1e-4


def test_distances_of_states_are_called_as_they_are_and_look_at_no_image() -> None:
    student, target, rows = states(1), states(2), torch.arange(NUM)
    for kind in (L1, L2):
        distance = kind(NoImages())
        cache = TargetCache(distance, 1)
        assert torch.equal(cache.distances(student, target, rows), distance(student, target))
        assert cache.num_bytes == 0


def test_a_distance_without_cache_passes_student_and_teacher_once_each(
    distance: Feature | LPIPSNative,
) -> None:
    distance(states(1).requires_grad_(), states(2))
    assert seen(distance) == [(NUM, False), (NUM, True)]


class Largest(Distance):
    """A plugin of one method, as before there was a cache."""

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        return (student - target).abs().flatten(1).amax(dim=1)


class Doubled(LPIPSNative):
    """A plugin that builds on another and writes one method."""

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        return 2 * super().__call__(student, target)


def test_a_plugin_that_writes_call_alone_gives_its_own_numbers_everywhere() -> None:
    student, target, rows = states(1), states(2), torch.arange(NUM)
    plain = lpips_native()
    doubled = Doubled(Pixels(), trunk=plain.trunk, heads=plain.heads)
    for distance in (Largest(Pixels()), doubled):
        found = TargetCache(distance, 1).distances(student, target, rows)
        assert torch.equal(found, distance(student, target))
    assert torch.equal(doubled(student, target), 2 * plain(student, target))
    largest = Largest(Pixels())
    assert torch.equal(largest.between(student, largest.embed(target)), largest(student, target))


def test_a_distance_that_writes_no_method_is_refused() -> None:
    class Nothing(Distance):
        pass

    with pytest.raises(TypeError, match="distance Nothing needs a method 'between'"):
        Nothing(Pixels())


def test_a_budget_that_holds_no_row_is_one_line_that_says_what_a_row_takes(
    distance: Feature | LPIPSNative,
) -> None:
    each, rows = row_bytes(distance), torch.arange(NUM)
    with pytest.raises(SolverBenchError, match=f"{each - 1} bytes holds no row: .* {each} bytes"):
        TargetCache(distance, each - 1).distances(states(1), states(2), rows)


def test_hashes_of_fits_without_a_cache_stay_and_sizes_are_read() -> None:
    assert not set(FitSpec().model_dump()) & set(LATER)
    asked = FitSpec.model_validate({"target_cache": "2GB", "target_cache_dtype": "bfloat16"})
    assert asked.target_cache == 2_000_000_000
    assert FitSpec.model_validate_json(asked.model_dump_json()) == asked
    assert asked == FitSpec(target_cache=2_000_000_000, target_cache_dtype="bfloat16")
    for wrong in ({"target_cache": "2XB"}, {"target_cache_dtype": "bfloat16"}):
        with pytest.raises(ValidationError, match=r"no size of memory|no use without"):
            FitSpec.model_validate(wrong)

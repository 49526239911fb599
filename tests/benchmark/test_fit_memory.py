"""The probe that chooses how much of a training step is held at once."""

import math
from pathlib import Path

import pytest
import torch

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.distances import L2
from solverbench.benchmark.fit_memory import FILE, cheapest, settled
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson, check_fit
from solverbench.commands import Choice, chosen_recipe, specs_of
from solverbench.errors import SolverBenchError
from solverbench.solvers import LearnableSolver
from solverbench.solvers.fitting import Holding
from solverbench.solvers.gs import GS
from tests.problems import bound

NFE, BATCH = 4, 8
BASE, PAIR, CALL = 100, 20, 10  # bytes of a made-up step


def peak_of(holding: Holding) -> int:
    stored = {"store": NFE, "recompute": 0}.get(holding.memory, holding.memory)
    assert isinstance(stored, int)
    return BASE + (holding.micro_batch or BATCH) * (PAIR + max(stored - 1, 0) * CALL)


def seconds_of(holding: Holding) -> float:
    """A part takes a second at least; a call that runs again half of one more."""
    stored = {"store": NFE, "recompute": 0}.get(holding.memory, holding.memory)
    assert isinstance(stored, int)
    return BATCH / (holding.micro_batch or BATCH) * (1 + 0.5 * (NFE - stored))


class Probe:
    """Measures the made-up step, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Holding] = []

    def __call__(self, holding: Holding) -> tuple[int, float]:
        self.asked.append(holding)
        return peak_of(holding), seconds_of(holding)


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (1000, Holding("store")),
        (500, Holding(3)),
        (300, Holding("recompute")),  # with one call kept the peak is the same
        (299, Holding("store", 2)),
        (200, Holding("store", 1)),
        (135, Holding("recompute", 1)),
    ],
)
def test_the_quickest_setting_that_fits_is_chosen(limit: int, wanted: Holding) -> None:
    probe = Probe()
    found = cheapest(probe, NFE, BATCH, limit)
    fits = [h for h in probe.asked[3:] if peak_of(h) <= limit]
    assert seconds_of(found) == min(map(seconds_of, fits))
    assert peak_of(found) <= limit
    assert seconds_of(found) <= seconds_of(wanted)


@pytest.mark.parametrize("limit", [135, 200, 300, 500])
def test_nothing_above_the_limit_is_tried_after_the_smallest_steps(limit: int) -> None:
    probe = Probe()
    cheapest(probe, NFE, BATCH, limit)
    assert [h.micro_batch for h in probe.asked[:3]] == [1, 2, 1]
    assert all(peak_of(h) <= limit for h in probe.asked[3:])


def test_a_budget_below_one_pair_says_how_much_is_needed() -> None:
    with pytest.raises(SolverBenchError, match=r"max_memory of 0.000 MB is too little.*raise it"):
        cheapest(Probe(), NFE, BATCH, 110)


def lesson(batch: int = 4, **facts: object) -> tuple[LearnableSolver, Lesson]:
    backbone = load_backbone("digits")
    solver = load_solver("gs", backbone, 3)
    assert isinstance(solver, LearnableSolver)
    noise = backbone.noise(range(8))
    pairs = Samples(range(8), noise, 0.1 * noise, None, 0.0, 3, 3.0, 0)
    spec = FitSpec(iterations=40, batch=batch, train_size=8, validation_size=8, **facts)  # type: ignore[arg-type]
    return solver, Lesson(spec, 0, backbone, L2(backbone), pairs, pairs)


def test_a_probe_leaves_the_solver_as_it_was_and_is_made_once(tmp_path: Path) -> None:
    solver, given = lesson(max_memory="1GB")
    before = {key: value.clone() for key, value in solver.state_dict().items()}
    found = settled(solver, given, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in solver.state_dict().items())
    assert found.micro_batch in (None, 1, 2)
    (tmp_path / FILE).write_text('["recompute", 3]')
    assert settled(solver, given, tmp_path) == Holding("recompute", 3)


def test_without_a_budget_the_spec_decides(tmp_path: Path) -> None:
    solver, given = lesson(memory=2, micro_batch=3)
    assert settled(solver, given, tmp_path / "none") == Holding(2, 3)
    assert not (tmp_path / "none").exists()


def test_what_a_probe_chose_is_in_the_record() -> None:
    solver, given = lesson(max_memory=10**9)
    fit = Fit(solver, given, Holding(2, 3))
    assert fit.settings() == {"memory": 2, "micro_batch": 3, "out_of_memory": 0}
    solver, given = lesson()
    assert Fit(solver, given).settings() == {}


def test_running_out_of_memory_is_in_the_record_and_in_the_checkpoint(tmp_path: Path) -> None:
    solver, given = lesson()
    backbone, fit = given.backbone, Fit(*lesson())
    raw = backbone.raw

    def small(x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("made up")
        return raw(x, t, condition)  # type: ignore[arg-type]

    backbone.raw = small  # type: ignore[method-assign]
    fit = Fit(solver, given)
    fit.advance()
    assert fit.settings() == {"memory": "store", "micro_batch": 2, "out_of_memory": 1}
    fit.save(tmp_path / "fit.safetensors")
    again = Fit(*lesson())
    again.load(tmp_path / "fit.safetensors")
    assert again.settings() == fit.settings()


HOLDINGS = [Holding("store"), Holding(2), Holding("recompute"), Holding("store", 3)]


def test_two_hundred_steps_end_alike_whatever_is_held() -> None:
    """Float64: 200 steps of Adam carry rounding of 1e-16 far below what any table shows."""
    found = []
    for holding in HOLDINGS:
        backbone = Gaussian()
        solver = bound(GS, backbone, 4)
        noise = backbone.noise(range(8)).double()
        pairs = Samples(range(8), noise, 0.1 * noise.flip(0), None, 0.0, 3, 3.0, 0)
        spec = FitSpec(iterations=200, batch=4, train_size=8, validation_size=8)
        fit = Fit(solver, Lesson(spec, 0, backbone, L2(backbone), pairs, pairs), holding)
        for _ in range(200):
            fit.advance()
        found.append(fit.solver.tableau().detach())
    for tableau in found[1:]:
        assert float((tableau.A - found[0].A).abs().max()) < 1e-9
        assert float((tableau.tau - found[0].tau).abs().max()) < 1e-9


def test_the_command_line_sets_what_is_held_for_every_row() -> None:
    for choice, wanted in (
        (Choice(max_memory="6GB"), (6 * 10**9, None)),
        (Choice(micro_batch=4), (None, 4)),
    ):
        fits = [spec.fit for spec in specs_of(chosen_recipe("smoke", choice)) if spec.fit]
        assert {(fit.max_memory, fit.micro_batch) for fit in fits} == {wanted}
    with pytest.raises(SolverBenchError, match="is no size of memory"):
        chosen_recipe("smoke", Choice(max_memory="lots"))


def test_the_command_line_has_the_last_word_on_what_a_row_holds(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, backbone: digits, nfe: 4, fit: {memory: recompute}, "
        "teacher: {solver: dpmpp-2m, nfe: 20}, solvers: [{name: gs, fit: {micro_batch: 2}}]}"
    )
    for choice, wanted in (
        (Choice(max_memory="1GB"), ("store", None, 10**9)),
        (Choice(micro_batch=3), ("recompute", 3, None)),
    ):
        fits = [spec.fit for spec in specs_of(chosen_recipe(str(path), choice)) if spec.fit]
        found = {(fit.memory, fit.micro_batch, fit.max_memory) for fit in fits}
        assert found == {wanted}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"max_memory": "1GB", "memory": "recompute"}, "chooses memory and micro_batch itself"),
        ({"max_memory": "1GB", "micro_batch": 2}, "chooses memory and micro_batch itself"),
        ({"memory": True}, "memory"),
        ({"memory": 0}, "memory"),
        ({"micro_batch": True}, "micro_batch"),
    ],
)
def test_what_contradicts_itself_is_refused(facts: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FitSpec(**facts)  # type: ignore[arg-type]


def test_a_probe_that_runs_out_of_memory_says_so() -> None:
    with pytest.raises(SolverBenchError, match="one pair at a time is out of memory"):
        cheapest(lambda holding: (math.inf, math.inf), NFE, BATCH, 1000)
    found = cheapest(
        lambda h: (math.inf, math.inf) if h == Holding() else (peak_of(h), seconds_of(h)),
        NFE,
        BATCH,
        1000,
    )
    assert found == Holding("store", 4)


def test_validation_that_does_not_fit_is_done_in_parts() -> None:
    solver, given = lesson()
    whole = Fit(solver, given).validate()
    raw = given.backbone.raw

    def small(x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("made up")
        return raw(x, t, condition)  # type: ignore[arg-type]

    given.backbone.raw = small  # type: ignore[method-assign]
    fit = Fit(solver, given)
    assert fit.validate() == pytest.approx(whole, rel=1e-5)  # float32 in other batches
    assert fit.portions.size == 2


def test_a_cache_that_would_keep_nothing_is_refused() -> None:
    solver, given = lesson(target_cache="1MB")
    with pytest.raises(SolverBenchError, match="l2 keeps nothing of the teacher"):
        check_fit(given.spec, given.backbone, solver, given.distance)  # type: ignore[arg-type]


def test_a_rule_may_report_plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Fit(*lesson())
    monkeypatch.setattr(fit.rule, "step", lambda batch, scale: {"loss": 0.25})
    fit.advance()
    assert fit.log[-1] == {"iteration": 1, "loss": 0.25}

"""Recorded passes: the same samples and counts as played ones, and a way on where it fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.sd import StableDiffusion
from solverbench.benchmark.acceleration import accelerated, facts_of
from solverbench.benchmark.graphs import CudaRecorder, Graphs
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.sampling import sample_seeds
from solverbench.benchmark.spec import NetworkSpec
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import sample
from tests.backbones.sd_cases import FOLDER


class OnHost:
    """Stands in for a device's graphs: what it repeats reads and writes the recorded tensors only.

    Like a graph it runs none of the Python around the tensors again: counts are put back.
    """

    def __init__(self) -> None:
        self.warmed = self.recorded = self.repeated = 0
        self.fails = False
        self.backbone: Any = None

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        final = work()
        if self.fails:
            raise RuntimeError("\noperation not permitted when stream is capturing\nmore")
        final.zero_()  # a recording computes nothing

        def repeat() -> None:
            self.repeated += 1
            before, self.backbone._counts = self.backbone._counts, ()
            hooks = dict(self.backbone.network._forward_pre_hooks)
            self.backbone.network._forward_pre_hooks.clear()
            final.copy_(work())
            self.backbone.network._forward_pre_hooks.update(hooks)
            self.backbone._counts = before

        return final, repeat


def recording(backbone: Any, **options: Any) -> OnHost:
    recorder = OnHost()
    recorder.backbone = backbone
    backbone.player = Graphs(backbone, recorder, **options)
    return recorder


@pytest.fixture(params=["digits", "cifar16", "sd"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same backbone twice: without conditions, with classes and guidance, with prompts."""

    def make() -> Any:
        if request.param == "sd":
            backbone = StableDiffusion(weights=str(FOLDER), guidance=3.0)
            backbone.prompts.distinct = ["a cat", "a dog on a chair"]
            backbone.prompts.places = [0, 1]
            return backbone
        options = {"guidance": 1.5} if request.param == "cifar16" else {}
        return load_backbone(request.param, **options)

    return make(), make()


def test_replays_give_what_a_played_pass_gives_for_every_tableau_noise_and_condition(
    pair: tuple[Any, Any],
) -> None:
    plain, quick = pair
    recorder = recording(quick)
    for turn, name in enumerate(("dpmpp-3m", "unipc-3", "ipndm-3", "ddim")):
        tableau = load_solver(name, plain, nfe=2).tableau()
        seeds = range(3 * turn, 3 * turn + 3)
        noise, condition = plain.noise(seeds), plain.condition(seeds)
        with plain.counting() as count:
            wanted = sample(plain, tableau.detach(), noise, condition)
        with quick.counting() as outer, quick.counting() as seen:
            found = sample(quick, tableau.detach(), noise, quick.condition(seeds))
        assert torch.equal(found, wanted)
        assert seen == count
        assert outer == count
        found.zero_()  # the caller's own: no later replay sees it
    assert (recorder.warmed, recorder.recorded, recorder.repeated) == (1, 1, 3)
    assert facts_of(quick) == {"network_graphs": True}


def test_each_shape_has_its_own_graph_and_the_oldest_gives_way() -> None:
    backbone = load_backbone("digits")
    recorder = recording(backbone, most=2)
    tableau = load_solver("ddim", backbone, nfe=2).tableau().detach()
    for num in (1, 1, 2, 2, 1, 3, 2):  # at 3 the graph for 2 rows is the oldest
        sample(backbone, tableau, backbone.noise(range(num)))
    assert (recorder.warmed, recorder.recorded, recorder.repeated) == (4, 2, 3)


def test_passes_with_gradients_and_passes_that_tell_of_their_calls_are_played() -> None:
    backbone = load_backbone("digits")
    recorder = recording(backbone)
    solver: Any = load_solver("gs", backbone, nfe=2)
    noise, told = backbone.noise(range(2)), list[int]()
    sample(backbone, solver.tableau(), noise).square().mean().backward()
    sample(backbone, solver.tableau().detach(), noise, on_call=told.append)
    assert told == [0, 1]
    assert (recorder.warmed, recorder.recorded) == (0, 0)


def test_where_recording_fails_sampling_goes_on_and_the_reason_is_kept() -> None:
    plain, quick = load_backbone("digits"), load_backbone("digits")
    recorder = recording(quick)
    recorder.fails = True
    tableau = load_solver("ddim", plain, nfe=3).tableau().detach()
    noise = plain.noise(range(2))
    wanted = sample(plain, tableau, noise)
    sample(quick, tableau, noise)
    with quick.counting() as count:
        with pytest.warns(RuntimeWarning, match="sampling runs without graphs; RuntimeError: op"):
            found = sample(quick, tableau, noise)
        again = sample(quick, tableau, noise)  # without a second attempt
    assert torch.equal(found, wanted)
    assert torch.equal(again, wanted)
    assert (count.calls, count.rows, count.samples) == (6, 12, 12)
    assert recorder.recorded == 1
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert facts_of(quick) == {"network_not_graphed": why}


def test_blocks_of_seeds_are_sampled_and_counted_alike(tmp_path: Path) -> None:
    plain, quick = load_backbone("cifar16"), load_backbone("cifar16")
    recording(quick)
    tableau = load_solver("unipc-3", plain, nfe=2).tableau().detach()
    found = [
        sample_seeds(tmp_path / name, backbone, tableau, range(7), 2)
        for name, backbone in (("plain", plain), ("quick", quick))
    ]
    assert torch.equal(found[0].states[:], found[1].states[:])
    assert (found[0].nfe, found[0].network_rows) == (found[1].nfe, found[1].network_rows) == (2, 2)


def test_graphs_need_a_device_that_has_them() -> None:
    with pytest.raises(SolverBenchError, match=r"network\.cuda_graphs needs a CUDA device"):
        accelerated(load_backbone("digits"), NetworkSpec(cuda_graphs=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["digits", "cifar16"])
def test_a_graph_of_cuda_gives_what_a_played_pass_gives(name: str) -> None:
    plain = load_backbone(name, device="cuda")
    quick = accelerated(load_backbone(name, device="cuda"), NetworkSpec(cuda_graphs=True))
    assert isinstance(quick.player, Graphs)
    assert isinstance(quick.player.recorder, CudaRecorder)
    for turn, solver in enumerate(("dpmpp-3m", "unipc-3", "ipndm-3", "ddim")):
        tableau = load_solver(solver, plain, nfe=4).tableau().detach()
        seeds = range(5 * turn, 5 * turn + 5)
        noise, condition = plain.noise(seeds), plain.condition(seeds)
        with quick.counting() as count:
            found = sample(quick, tableau, noise, condition)
        # the same kernels on the same numbers; cuDNN may choose another on another stream
        torch.testing.assert_close(
            found, sample(plain, tableau, noise, condition), rtol=1e-5, atol=1e-5
        )
        assert (count.calls, count.rows, count.samples) == (4, 20, 20)
    assert facts_of(quick) == {"network_graphs": True}

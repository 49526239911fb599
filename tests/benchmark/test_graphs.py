"""Recorded passes: the same samples and counts as played ones, and a way on where it fails."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.sd import StableDiffusion
from solverbench.benchmark.acceleration import accelerated, facts_of
from solverbench.benchmark.graphs import CudaRecorder, Graphs, Recording
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
        self.fails: RuntimeError | None = None
        self.backbone: Any = None

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> Recording:
        self.recorded += 1
        final = work()
        if self.fails:
            try:
                raise self.fails
            finally:
                raise RuntimeError("capture failed due to a previous error")
        final.zero_()  # a recording computes nothing

        def repeat() -> None:
            self.repeated += 1
            before, self.backbone._counts = self.backbone._counts, ()
            hooks = dict(self.backbone.network._forward_pre_hooks)
            self.backbone.network._forward_pre_hooks.clear()
            final.copy_(work())
            self.backbone.network._forward_pre_hooks.update(hooks)
            self.backbone._counts = before

        return Recording(final, repeat, 100)


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
    assert facts_of(quick) == {"network_graph_bytes": 100}


def test_each_shape_has_its_own_graph_and_the_oldest_gives_way() -> None:
    backbone = load_backbone("digits")
    recorder = recording(backbone, most=2)
    tableau = load_solver("ddim", backbone, nfe=2).tableau().detach()
    for num in (1, 1, 2, 2, 1, 3, 2):  # at 3 the graph for 2 rows is the oldest
        sample(backbone, tableau, backbone.noise(range(num)))
    assert (recorder.warmed, recorder.recorded, recorder.repeated) == (4, 2, 3)
    assert facts_of(backbone) == {"network_graph_bytes": 200}


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
    recorder.fails = RuntimeError("\noperation not permitted when stream is capturing\nmore")
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


def test_a_shape_without_room_for_its_graph_is_played_and_others_are_recorded() -> None:
    plain, quick = load_backbone("digits"), load_backbone("digits")
    recorder = recording(quick)
    tableau = load_solver("ddim", plain, nfe=3).tableau().detach()
    sample(quick, tableau, plain.noise(range(2)))
    recorder.fails = torch.OutOfMemoryError("no room")
    with quick.counting() as count:
        found = sample(quick, tableau, plain.noise(range(2)))
    assert torch.equal(found, sample(plain, tableau, plain.noise(range(2))))
    assert (count.calls, count.rows, count.samples) == (3, 6, 6)
    recorder.fails = None
    for _ in range(2):
        sample(quick, tableau, plain.noise(range(1)))
    assert recorder.repeated == 1


def test_a_backbone_is_let_go_with_its_graphs() -> None:
    backbone = load_backbone("digits")
    recording(backbone).backbone = None
    gone = weakref.ref(backbone)
    gc.disable()  # references alone
    try:
        del backbone
        assert gone() is None
    finally:
        gc.enable()


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


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@ON_CUDA
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
        wanted = sample(plain, tableau, noise, condition)
        with quick.counting() as count:
            found = sample(quick, tableau, noise, condition)
        torch.testing.assert_close(
            found, wanted, rtol=1e-5, atol=1e-5
        )  # the same kernels: rounding
        assert (count.calls, count.rows, count.samples) == (4, 20, 20)
    assert list(facts_of(quick)) == ["network_graph_bytes"]


@pytest.mark.gpu
@ON_CUDA
def test_what_cannot_be_recorded_leaves_the_device_as_it_was() -> None:
    quick = accelerated(load_backbone("digits", device="cuda"), NetworkSpec(cuda_graphs=True))
    whole: Any = quick.raw

    def raw(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        assert t.item() > 0  # waits for the device
        return whole(x, t, condition)

    vars(quick)["raw"] = raw
    tableau, noise = load_solver("ddim", quick, nfe=3).tableau().detach(), quick.noise(range(2))
    stream = torch.cuda.current_stream()
    wanted = sample(quick, tableau, noise)
    with pytest.warns(RuntimeWarning, match="sampling runs without graphs"):
        found = sample(quick, tableau, noise)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    for again in (found, sample(quick, tableau, noise)):
        torch.testing.assert_close(again, wanted, rtol=1e-5, atol=1e-5)
    assert "captur" in str(facts_of(quick)["network_not_graphed"])

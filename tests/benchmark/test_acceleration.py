"""The network at speed: what may change, what may not, and what a record says of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverbench.backbones.base import Backbone
from solverbench.backbones.edm import EDM
from solverbench.backbones.sd import StableDiffusion
from solverbench.benchmark.acceleration import accelerated, facts_of, repeated, set_precision
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.run import loaded, run
from solverbench.benchmark.spec import EXACT, FAST, NetworkSpec, RunSpec
from solverbench.solvers.tableau import sample
from tests.backbones.emit import fixture_file
from tests.backbones.ldm_cases import MODELS, model, unpacked
from tests.backbones.sd_cases import FOLDER
from tests.benchmark.cells import cell

Make = Callable[[Path], Backbone]
FORM = NetworkSpec(channels_last=True)
HALF = NetworkSpec(autocast="bfloat16")
BOTH = NetworkSpec(autocast="bfloat16", channels_last=True)
BACKBONES: dict[str, Make] = {
    "digits": lambda folder: load_backbone("digits", channels_last=False),
    "cifar16": lambda folder: load_backbone("cifar16", guidance=1.5, channels_last=False),
    "edm": lambda folder: EDM(weights=str(fixture_file("edm-tiny-uncond-ddpmpp.pkl", folder))),
    "ldm": lambda folder: model(unpacked(folder), MODELS[1]),
    "sd": lambda folder: StableDiffusion(weights=str(FOLDER), guidance=3.0),
}


@pytest.fixture(scope="module", params=BACKBONES)
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Backbone]:
    folder = tmp_path_factory.mktemp("weights")
    return lambda: BACKBONES[request.param](folder)


def called(backbone: Backbone, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An evaluation, and the gradients of its squared length to state and time."""
    x = x.clone().requires_grad_()
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    e = backbone.evaluate(x, t, backbone.condition(range(len(x))))
    return e.detach(), *torch.autograd.grad(e.square().sum(), [x, t])


def gap(value: Tensor, wanted: Tensor) -> float:
    """Length of the difference, as a share of the wanted length."""
    return float((value - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("spec", [FORM, HALF, BOTH], ids=str)
def test_every_kind_of_network_keeps_types_counts_and_gradients(
    make: Callable[[], Backbone], spec: NetworkSpec
) -> None:
    exact, quick = make(), accelerated(make(), spec)
    x = exact.noise(range(3))
    with exact.counting() as count:
        wanted = called(exact, x)
    with quick.counting() as seen:
        found = called(quick, x)
    assert (seen.calls, seen.rows, seen.samples) == (count.calls, count.rows, count.samples)
    # rounding; of eight bits in each of a dozen layers with autocast. The slope in time is one sum
    # of terms of both signs: 0.13 where the processor has no arithmetic of bfloat16
    for value, other, half in zip(found, wanted, (0.1, 0.1, 0.25), strict=True):
        assert (value.dtype, value.shape) == (other.dtype, other.shape)
        assert gap(value, other) < (half if spec.autocast else 1e-4)
    if spec.autocast:
        assert gap(found[0], wanted[0]) > 1e-5  # more than float32 rounds: it is at work
    with torch.no_grad():
        double = quick.evaluate(x.double(), torch.tensor(0.4).double(), quick.condition(range(3)))
    assert double.dtype == torch.float64


def test_channels_last_moves_the_weights_and_nothing_else() -> None:
    backbone = accelerated(load_backbone("digits", channels_last=False), FORM)
    kernels = [p for p in backbone.network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert "forward" not in vars(backbone.network)


def test_an_exact_network_is_left_alone() -> None:
    plain, exact = load_backbone("digits"), accelerated(load_backbone("digits"), EXACT)
    x, t = plain.noise(range(2)), torch.tensor(0.4).double()
    assert "forward" not in vars(exact.network)
    assert torch.equal(exact.evaluate(x, t), plain.evaluate(x, t))


def test_autocast_is_the_same_in_a_call_and_in_its_repetition() -> None:
    """Without it in both, the two settings of memory would differ by the rounding of bfloat16."""
    backbone = accelerated(load_backbone("digits"), HALF)
    solver: Any = load_solver("gs", backbone, 3)
    found = []
    for memory in ("store", "recompute"):
        tableau = solver.tableau()
        end = sample(backbone, tableau, backbone.noise(range(2)), memory=memory)
        grads = torch.autograd.grad(end.square().sum(), list(solver.parameters()))
        found.append((end, *grads))
    for stored, again in zip(*found, strict=True):
        # the order of sums in the backward pass may differ
        torch.testing.assert_close(stored, again, rtol=1e-6, atol=1e-9)


# PyTorch's compiler uses what PyTorch itself has deprecated
OWN = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Plain(nn.Module):
    """A network without repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.first(x)))
        return y


class Small(Backbone):
    """A backbone of a network that compiles in seconds."""

    name = "small"
    state_shape = (1, 4, 4)

    def __init__(self, kind: type[nn.Module]) -> None:
        torch.manual_seed(0)
        self.network = kind().requires_grad_(False)

    def raw(self, x: Tensor, t: Tensor, condition: object) -> Tensor:
        e: Tensor = self.network(x) * t.to(x)
        return e


class Stack(nn.Sequential):
    """Two blocks of one class, and a layer."""

    def __init__(self) -> None:
        super().__init__(Plain(), Plain(), nn.Conv2d(1, 1, 1))


@pytest.fixture
def compiler() -> Iterator[Any]:
    """Settings of the compiler; what it compiled for other tests is forgotten."""
    import torch._dynamo
    import torch._inductor.config

    reset: Any = torch._dynamo.reset
    reset()
    yield torch._inductor.config
    reset()


def test_the_outermost_blocks_of_a_repeated_class_are_found() -> None:
    kinds = [type(block).__name__ for block in repeated(load_backbone("digits").network)]
    assert set(kinds) == {"ResidualBlock"}
    assert len(kinds) == 8
    assert len(list(repeated(Stack()))) == 2
    assert list(repeated(Plain())) == []


@OWN
@pytest.mark.slow
@pytest.mark.parametrize("kind", [Stack, Plain])
def test_a_compiled_network_gives_the_same_numbers(kind: type[nn.Module], compiler: Any) -> None:
    """Slow: a C++ compiler runs for each graph."""
    exact, quick = Small(kind), accelerated(Small(kind), NetworkSpec(compile=True))
    x = exact.noise(range(2))
    for value, wanted in zip(called(quick, x), called(exact, x), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)  # sums in another order
    named = {Stack: "2 Plain", Plain: "whole network"}[kind]
    assert facts_of(quick) == {"network_compiled": named}


@OWN
@pytest.mark.slow
def test_backward_passes_are_compiled_where_a_failure_is_caught(
    compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the backward pass itself: none is left to compile there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled yet
    exact, quick = Small(Plain), accelerated(Small(Plain), NetworkSpec(compile=True))
    x, t = exact.noise(range(2)), torch.tensor(0.5).double()
    slopes = []
    for backbone in (exact, quick):
        y = x.clone().requires_grad_()
        e = backbone.evaluate(y, t)
        with compiler.patch({"cpp.cxx": ("no-such-compiler",)}):
            slopes += torch.autograd.grad(e.square().sum(), y)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)  # sums in another order
    assert "network_compiled" in facts_of(quick)


@OWN
@pytest.mark.parametrize("kind", [Stack, Plain])
def test_without_a_compiler_the_network_runs_on_and_the_reason_is_kept(
    kind: type[nn.Module], compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled yet
    exact, quick = Small(kind), accelerated(Small(kind), NetworkSpec(compile=True))
    x, t = exact.noise(range(2)), torch.tensor(0.5).double()
    with compiler.patch({"cpp.cxx": ("no-such-compiler",)}), quick.counting() as count:
        with pytest.warns(RuntimeWarning, match="the network runs uncompiled; ") as said:
            found = quick.evaluate(x, t)
        again = quick.evaluate(x, t)  # without a second attempt
    assert torch.equal(found, exact.evaluate(x, t))
    assert torch.equal(again, found)
    assert (len(said), count.calls, count.rows) == (1, 2, 4)
    assert "\n" not in str(said[0].message)
    assert list(facts_of(quick)) == ["network_not_compiled"]


def test_precision_is_set_both_ways() -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        for spec in (NetworkSpec(tf32=True, cudnn_benchmark=True), EXACT):
            set_precision(spec)
            on = spec.tf32
            assert (cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (on, on, on)
            assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_a_network_that_is_exact_counts_in_no_hash_and_what_is_on_does() -> None:
    plain = cell()
    assert "network" not in plain.model_dump(mode="json")
    assert plain.model_copy(update={"network": NetworkSpec(tf32=False)}).key() == plain.key()
    fast = plain.model_copy(update={"network": NetworkSpec(channels_last=True)})
    assert fast.model_dump(mode="json")["network"] == {"channels_last": True}
    assert fast.key() != plain.key()
    assert RunSpec.model_validate_json(fast.model_dump_json()) == fast
    assert RunSpec.model_validate_json(plain.model_dump_json()).network == EXACT


def test_a_fast_cell_leaves_the_exact_one_of_its_process_as_it_was(tmp_path: Path) -> None:
    exact = cell(num_images=20, nfe=2)
    half = exact.model_copy(update={"network": HALF})
    first = run(exact, tmp_path / "first")
    quick = run(half, tmp_path / "quick")
    again = run(exact, tmp_path / "again")
    assert quick.spec.network == HALF
    assert quick.metrics != first.metrics
    assert again.metrics == first.metrics
    assert loaded(exact.backbone.model_dump_json(), EXACT) is not loaded(
        exact.backbone.model_dump_json(), FAST
    )

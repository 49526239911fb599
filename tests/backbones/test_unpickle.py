"""No file runs anything: published layouts are read, all else is refused."""

import io
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from solverbench import published_discriminator
from solverbench.backbones import edm_files
from solverbench.backbones.edm_files import load_network
from solverbench.backbones.edm_preconditioning import build
from solverbench.discriminator import R3GANDiscriminator
from solverbench.errors import SolverBenchError
from solverbench.published_discriminator import load_published
from solverbench.sources import Source
from solverbench.torchfile import Stored, module_tensors, read_any, read_pickle, read_zip
from solverbench.unpickle import Limits, Names, Record
from tests.backbones.emit import (
    ORDERED,
    Call,
    Label,
    edm_tree,
    emit,
    fixture_bytes,
    fixture_file,
    goldens,
    r3gan_tree,
    tensor,
)

TINY = {
    "img_resolution": 4,
    "img_channels": 1,
    "model_type": "DhariwalUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
CALLBACK = ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
REFUSED = {
    "evil-edm-source.pkl": "lacks parameters",
    "evil-edm-unknown-class.pkl": "'Payload' is not among",
    "evil-edm-reduce.pkl": "'os.system' is not among|'posix.system' is not among",
    "evil-edm-nested-storage.pkl": "storage is not made of the bytes",
}
WATCHED = ("exec", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess")


def read(data: bytes, names: Names | None = None, limits: Limits | None = None) -> Any:
    return read_pickle(Source(io.BytesIO(data)), names or {}, limits)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory in which nothing named PWNED may appear."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "PWNED").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_networks_are_refused_before_anything_runs(
    name: str, tmp_path: Path, empty: Path
) -> None:
    with pytest.raises(SolverBenchError, match=REFUSED[name]):
        load_network(fixture_file(f"malicious/{name}", tmp_path))


def test_a_hostile_discriminator_is_refused(tmp_path: Path, empty: Path) -> None:
    path = fixture_file("malicious/evil-r3gan-torch-save.pkl", tmp_path)
    with pytest.raises(SolverBenchError, match="serialization"):
        load_published(path)


def test_a_call_hidden_in_a_checkpoint_is_refused_though_its_class_is_allowed(empty: Path) -> None:
    data = fixture_bytes("malicious/evil-ldm-callback.ckpt")
    with pytest.raises(SolverBenchError, match="not among") as caught:
        read_zip(Source(io.BytesIO(data)), {CALLBACK: "label"})
    assert "ModelCheckpoint" not in str(caught.value)


def test_hostile_source_text_beside_good_weights_does_no_harm(tmp_path: Path, empty: Path) -> None:
    path = fixture_file("malicious/hostile-source-valid-weights.pkl", tmp_path)
    network, facts = load_network(path)
    golden = goldens("baseline-tiny-uncond-vp")
    got = network(golden["x"], golden["sigma"]) - golden["denoised"]
    # float32: the result is a difference of terms as large as sigma, which is 150 at most
    assert bool((got.abs().amax((1, 2, 3)) < 2e-5 * golden["sigma"].clamp(min=1)).all())
    assert len(facts.source_sha256) == 64


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x09_C.system\x93.", "torch._C.system"),
        (b"\x80\x02ccopy_reg\n_reconstructor\n.", "copy_reg"),
        (b"\x80\x02\x82\x01.", "instruction"),  # extension registry
        (b"(S'ls'\nios\nsystem\n.", "instruction"),  # INST
        (b"P0\n.", "instruction"),  # persistent id as text
        (b"\x80\x04K\x01Q.", "outside the stream"),
        (b"\x80\x04K\x01)R.", "a int is called"),
        (b"\x80\x04}K\x01b.", "gets attributes"),
        (b"\x80\x04ccollections\nOrderedDict\n}b.", "gets attributes"),
        (b"\x80\x04ccollections\nOrderedDict\n)\x81.", "made into an object"),
        (b"\x80\x04ccollections\nOrderedDict\n](K\x01e\x85R.", "with arguments"),
        (b"\x80\x04}]K\x01s.", "is a key"),
        (b"\x80\x04h\x07.", "has not stored"),
        (b"\x80\x04u.", "mark is missing"),
        (b"\x80\x04R.", "stack is empty"),
        (b"\x80\x04(K\x010.", "stack is empty"),
        (b"\x80\x04X\xff\xff\xff\x7fabc.", "cut or damaged|texts take"),
        (b"\x80\x04B\xff\xff\xff\x7fabc.", "cut or damaged"),
        (b"\x80\x04\x8c\x01\xff.", "UTF-8"),
        (b"\x80\x04}", "cut or damaged"),
        (b"", "cut or damaged"),
    ],
)
def test_other_instructions_and_names_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(SolverBenchError, match=why):
        read(data)


def test_what_is_deep_long_or_large_is_refused_or_harmless() -> None:
    deep = b"\x80\x04)" + b"\x85" * 100_000 + b"."
    assert isinstance(read(deep), tuple)
    with pytest.raises(SolverBenchError, match="tuple is a key"):
        read(b"\x80\x04})" + b"\x85" * 100_000 + b"K\x01s.")
    with pytest.raises(SolverBenchError, match="instructions"):
        read(b"\x80\x04" + b"}" * 2000 + b".", limits=Limits(steps=1000))
    with pytest.raises(SolverBenchError, match="texts take"):
        read(b"\x80\x04" + b"C\x0a0123456789" * 20 + b".", limits=Limits(text=100))
    with pytest.raises(SolverBenchError, match="longer than"):
        read(b"\x80\x04" + b"}" * 2000 + b".", limits=Limits(seconds=-1.0))


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (3, 5)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (3, 4)},
        {"stride": (-1, 1)},
        {"shape": (1 << 50, 1), "stride": (0, 0)},
        {"shape": (1000, 1000), "stride": (0, 0)},  # expands 12 numbers to a million
        {"numel": 13},
        {"numel": 11},
        {"numel": 1 << 41},
        {"shape": [3, 4]},
        {"shape": (3.0, 4)},
    ],
)
def test_tensors_outside_their_storage_are_refused(lie: dict[str, Any]) -> None:
    with pytest.raises(SolverBenchError, match="refused"):
        read(emit(tensor(torch.arange(12.0).reshape(3, 4), **lie)))


def test_tensors_come_back_as_they_were() -> None:
    values = torch.arange(12.0).reshape(3, 4)
    stored = read(emit([tensor(values), tensor(values, shape=(4, 3), stride=(1, 4))]))
    assert all(isinstance(s, Stored) for s in stored)
    assert torch.equal(stored[0].read(), values)
    assert torch.equal(stored[1].read(), values.T)


def test_files_of_torch_save_come_back_as_they_were() -> None:
    state = {"a": torch.arange(6.0).half().reshape(2, 3), "b": torch.tensor([True, False])}
    state |= {"c": state["a"][:, 1], "d": torch.empty(0), "e": torch.tensor([1.5]).bfloat16()}
    file = io.BytesIO()
    torch.save({"state_dict": state, "step": 3}, file)
    got = read_any(Source(file), {})
    assert got["step"] == 3
    for key, value in state.items():
        assert torch.equal(got["state_dict"][key].read(), value)


def test_module_trees_that_loop_or_double_end() -> None:
    module = Record("m", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    module.state["_modules"] |= {"a": module, "b": module}
    with pytest.raises(SolverBenchError, match="too many or too deep"):
        module_tensors(module)


def test_tensors_that_share_numbers_to_outgrow_the_file_are_refused() -> None:
    values = read(emit(tensor(torch.zeros(1000))))
    part = {"_parameters": {str(i): values for i in range(9)}, "_buffers": {}, "_modules": {}}
    with pytest.raises(SolverBenchError, match="larger than the file"):
        module_tensors(Record("m", part))


@cache
def tiny() -> tuple[bytes, Any]:
    """A small network and its file."""
    torch.manual_seed(0)
    network = build("EDMPrecond", TINY).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.normal_()
    return emit(edm_tree(network, TINY)), network


def load_bytes(data: bytes) -> Any:
    """What the loader makes of a file's bytes."""
    facts, tensors = edm_files.inspect(Source(io.BytesIO(data)))
    return edm_files.filled(facts, tensors)


def test_a_network_written_by_hand_loads() -> None:
    data, network = tiny()
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(load_bytes(data)(x, torch.tensor(1.0)), network(x, torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_channels": 10**9}, "model_channels"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"channel_mult": [1] * 9}, "channel_mult"),
        ({"channel_mult": [10**9]}, "channel_mult"),
        ({"channel_mult": [1, 1, 1, 1]}, "halved"),
        ({"model_type": "Payload"}, "model_type"),
        ({"code": "import os"}, "code"),
        ({"in_channels": 3}, "in_channels"),
        ({"sigma_data": float("nan")}, "sigma_data"),
        ({"label_dim": True}, "label_dim"),
        ({"num_blocks": 2}, "lacks parameters"),
        ({"model_channels": 8}, "other sizes"),
        ({"sigma_data": ORDERED}, "keyword"),
        ({"sigma_data": 10**400}, "keyword"),
        ({"dropout": 10**400}, "keyword"),
        ({"resample_filter": [10**400], "model_type": "SongUNet"}, "model_type"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], why: str) -> None:
    """No weights are made before the sizes are known to be those of the tensors."""
    with pytest.raises(SolverBenchError, match=why):
        load_bytes(emit(edm_tree(tiny()[1], TINY | changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"_init_args": (1,)},
        {"_init_kwargs": None},
        {"_modules": {}},
        {"_modules": {"model": None}},
        {"_parameters": []},
        {"sigma_min": "0"},
        {"sigma_min": 3, "sigma_max": 2},
        {"sigma_min": float("nan")},
        {"sigma_min": 10**400},
        {"sigma_max": 10**400},
    ],
)
def test_objects_that_are_no_networks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SolverBenchError, match="refused"):
        load_bytes(emit(edm_tree(tiny()[1], TINY, **changes)))


class Watch:
    """Audit events that a loader must never cause."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if self.on and (writes or event.startswith(WATCHED)):
            self.seen.append(event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """No more address space than that above what is taken, where the system can say it."""
    taken = Path("/proc/self/statm")
    if not taken.exists():
        yield
        return
    now = int(taken.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


Edit = tuple[int, int, bytes]


def mutated(data: bytes, edits: list[Edit], swaps: list[tuple[int, int]], cut: float) -> bytes:
    """Bytes replaced (position, how many, by what), bytes swapped, then the end cut off."""
    changed = bytearray(data)
    for position, length, new in edits:
        start = position % max(1, len(changed))
        changed[start : start + length] = new
    for pair in swaps if changed else []:
        one, other = (place % len(changed) for place in pair)
        changed[one], changed[other] = changed[other], changed[one]
    return bytes(changed[: int(cut * len(changed))])


def load_zip(data: bytes) -> Any:
    """All tensors of a file of ``torch.save``."""
    tree = read_any(Source(io.BytesIO(data)), {CALLBACK: "label"})
    state = tree.get("state_dict") if isinstance(tree, dict) else None
    return [v.read() for v in state.values() if type(v) is Stored] if type(state) is dict else None


def load_r3gan(data: bytes) -> Any:
    """What the loader makes of a discriminator's bytes."""
    return published_discriminator.read(Source(io.BytesIO(data)))


def zipped() -> bytes:
    """A small file of ``torch.save``."""
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}}, file)
    return file.getvalue()


def small_r3gan() -> bytes:
    """A small discriminator in a file of its own."""
    made = R3GANDiscriminator((2, 4), (1, 2), (1, 1), 1).init(torch.Generator().manual_seed(0))
    return emit(r3gan_tree(made))


def families() -> dict[str, tuple[Callable[[bytes], Any], list[bytes]]]:
    """Loaders and the files that they are fed with, mutated; the first of each loads."""
    hostile = [fixture_bytes(f"malicious/{name}") for name in REFUSED]
    call = Call(Label("os", "system"), ("touch PWNED",))
    return {
        "edm": (load_bytes, [tiny()[0], tiny()[0][:3000], *hostile]),
        "zip": (load_zip, [zipped(), fixture_bytes("malicious/evil-ldm-callback.ckpt")]),
        "r3gan": (
            load_r3gan,
            [
                small_r3gan(),
                emit({"D": call}),
                fixture_bytes("malicious/evil-r3gan-torch-save.pkl"),
                fixture_bytes("r3gan-tiny-ffhq64.pkl"),
            ],
        ),
    }


def test_no_mutation_of_a_file_runs_hangs_or_crashes(empty: Path) -> None:
    """2,400 cases: bytes, instructions and names replaced and swapped, ends cut off; three readers.

    A case may take 5 seconds, all together 1 GB.
    """
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    st = hypothesis.strategies
    readers = families()
    for load, bases in readers.values():
        assert load(bases[0]) is not None  # imports that happen once are over
    code = b"(.0123FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8f"
    code += b"\x90\x91\x92\x93\x94\x95\x96"
    names = [b"cos\nsystem\n", b"cbuiltins\nexec\n", b"X\x0b\x00\x00\x00touch PWNED\x85R"]
    names += [b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R", b"\xff\xff\xff\x7f"]
    names += [b"cR3GAN.Networks\nDiscriminator\n", b"ctorch\nbfloat16\n", b"ctorch\nload\n"]
    new = st.one_of(
        st.sampled_from([bytes([c]) for c in code]), st.sampled_from(names), st.binary(max_size=9)
    )
    place = st.one_of(st.integers(0, 1 << 20), st.integers(0, 1200))
    edits = st.lists(st.tuples(place, st.integers(0, 9), new), max_size=5)
    swaps = st.lists(st.tuples(place, place), max_size=3)
    cut = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))
    chosen = st.sampled_from([(name, i) for name in readers for i in range(len(readers[name][1]))])
    watch, cases, loaded = Watch(), Counter[str](), Counter[str]()

    @hypothesis.settings(
        max_examples=2400,
        deadline=5000,  # milliseconds a case
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(chosen=chosen, edits=edits, swaps=swaps, cut=cut)
    def case(
        chosen: tuple[str, int], edits: list[Edit], swaps: list[tuple[int, int]], cut: float
    ) -> None:
        load, bases = readers[chosen[0]]
        data = mutated(bases[chosen[1]], edits, swaps, cut)
        cases[chosen[0]] += 1
        with watch.watching(), suppress(SolverBenchError):
            load(data)
            loaded[chosen[0]] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_most(1_000_000_000):
        case()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert watch.seen == []
    assert cases.total() >= 2000
    assert min(cases.values()) >= 300
    assert loaded.keys() == readers.keys()  # some mutations do no harm, so not all is refused
    assert grown < 1e9

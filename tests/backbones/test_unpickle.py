"""No file runs anything: published layouts are read, all else is refused."""

import io
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from solverbench.backbones import edm_files, published_discriminator
from solverbench.backbones.edm_files import load_network
from solverbench.backbones.edm_preconditioning import build
from solverbench.backbones.published_discriminator import load_published
from solverbench.errors import SolverBenchError
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


def test_peak_memory_stays_under_the_size_of_the_file(tmp_path: Path) -> None:
    """1.2 times the size over what the imports take; 80 MB of weights."""
    keywords = TINY | {"model_channels": 512}
    network = build("EDMPrecond", keywords).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.zero_()
    path = tmp_path / "large.pkl"
    path.write_bytes(emit(edm_tree(network, keywords)))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from solverbench.backbones.edm_files import load_network\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "network = load_network(Path(sys.argv[1]))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 8e7
    assert int(done.stdout) < 1.2 * path.stat().st_size


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


def mutated(data: bytes, edits: list[tuple[int, int, bytes]], cut: float | None) -> bytes:
    """Bytes replaced (position, how many, by what), then the end cut off."""
    changed = bytearray(data)
    for position, length, new in edits:
        start = position % len(changed) if changed else 0
        changed[start : start + length] = new
    return bytes(changed[: int(cut * len(changed))] if cut is not None else changed)


def outcome(data: bytes) -> None:
    """The readers load a network or say that it is refused, and nothing else."""
    with suppress(SolverBenchError):
        if data[:2] == b"PK":
            read_any(Source(io.BytesIO(data)), {CALLBACK: "label"})
        elif b"DiscriminatorStage" in data:
            source = Source(io.BytesIO(data))
            read_pickle(source, published_discriminator.NAMES)
        else:
            load_bytes(data)


def test_no_mutation_of_a_file_runs_hangs_or_crashes(empty: Path) -> None:
    """2,000 cases: bytes, instructions and names swapped, ends cut off."""
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    st = hypothesis.strategies
    zipped = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(3.0)}}, zipped)
    whole = tiny()[0]
    bases = [
        whole,
        whole[:3000],
        zipped.getvalue(),
        *(fixture_bytes(f"malicious/{name}") for name in REFUSED),
        fixture_bytes("malicious/evil-r3gan-torch-save.pkl"),
        fixture_bytes("malicious/evil-ldm-callback.ckpt"),
        emit({"D": Call(Label("os", "system"), ("touch PWNED",)), "x": "DiscriminatorStage"}),
    ]
    code = b"(.0123FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8f"
    code += b"\x90\x91\x92\x93\x94\x95\x96"
    names = [b"cos\nsystem\n", b"cbuiltins\nexec\n", b"X\x0b\x00\x00\x00touch PWNED\x85R"]
    names += [b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R", b"\xff\xff\xff\x7f"]
    new = st.one_of(
        st.sampled_from([bytes([c]) for c in code]), st.sampled_from(names), st.binary(max_size=9)
    )
    edit = st.tuples(st.integers(0, 1 << 20), st.integers(0, 9), new)
    near = st.tuples(st.integers(0, 1200), st.integers(0, 9), new)
    edits = st.lists(st.one_of(edit, near), max_size=5)
    cut = st.one_of(st.none(), st.none(), st.floats(0, 1))
    watch, cases = Watch(), [0]
    for base in bases:
        outcome(base)  # imports that happen once are over

    @hypothesis.settings(
        max_examples=2000,
        deadline=5000,  # milliseconds a case
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(base=st.sampled_from(bases), edits=edits, cut=cut)
    def case(base: bytes, edits: list[tuple[int, int, bytes]], cut: float | None) -> None:
        data = mutated(base, edits, cut)
        cases[0] += 1
        with watch.watching():
            outcome(data)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert watch.seen == []
    assert cases[0] >= 2000
    assert grown < 1e9

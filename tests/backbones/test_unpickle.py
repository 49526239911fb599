"""No file runs anything: published layouts are read, all else is refused."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from solverbench.backbones import edm_files
from solverbench.backbones.edm_files import load_network
from solverbench.errors import SolverBenchError
from solverbench.published_discriminator import load_published
from solverbench.sources import Source
from solverbench.torchfile import Stored, module_tensors, read_any, read_pickle, read_zip
from solverbench.unpickle import Limits, Names, Record
from tests.backbones.emit import (
    ORDERED,
    TINY,
    Kept,
    Label,
    Made,
    edm_tree,
    emit,
    fixture_bytes,
    fixture_file,
    goldens,
    load_bytes,
    persistent,
    tensor,
    tiny,
)

CALLBACK = ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
REFUSED = {
    "evil-edm-source.pkl": "lacks parameters",
    "evil-edm-unknown-class.pkl": "'Payload' is not among",
    "evil-edm-reduce.pkl": "'os.system' is not among|'posix.system' is not among",
    "evil-edm-nested-storage.pkl": "storage is not made of the bytes",
}


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
        (b"\x80\x04K\x01)R.", "type int is called"),
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
    with pytest.raises(SolverBenchError, match="in two places"):
        module_tensors(module)
    deep = Record("m", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(40):
        deep = Record("m", {"_parameters": {}, "_buffers": {}, "_modules": {"a": deep}})
    with pytest.raises(SolverBenchError, match="too deep"):
        module_tensors(deep)


def shared(parameters: dict[str, Any], records: bool) -> bytes:
    """Six levels of modules, each with seven names for the one below, or for its dicts.

    Without sharing, there are 7^6 leaves with all the parameters.
    """
    parts = {"_parameters": Kept(0, parameters), "_buffers": {}, "_modules": Kept(1, {})}
    module, below = Kept(2, persistent("Conv2d", parts)), [0, 1, 2]
    for level in range(1, 7):
        dicts = {"_parameters": Kept(below[0]), "_buffers": {}, "_modules": Kept(below[1])}
        again = Kept(below[2]) if records else persistent("Conv2d", dicts)
        inner = {"0": module} | {str(i): again for i in range(1, 7)}
        below = [0, 10 * level + 1, 10 * level + 2]
        parts = {"_parameters": {}, "_buffers": {}, "_modules": Kept(below[1], inner)}
        module = Kept(below[2], persistent("Conv2d", parts))
    return emit(module)


@pytest.mark.parametrize("records", [True, False])
def test_what_stands_in_many_places_is_read_once(records: bool) -> None:
    names = {str(i): Kept(99) for i in range(9999)}
    tree = read(shared({"t": Kept(99, tensor(torch.zeros(1)))} | names, records), edm_files.NAMES)
    start = time.monotonic()
    with pytest.raises(SolverBenchError, match="in two places"):
        module_tensors(tree)
    assert time.monotonic() - start < 2  # seconds; 10^9 names otherwise


@pytest.mark.parametrize(("numel", "why"), [(0, "20,000 tensors"), (1000, "larger than the file")])
def test_many_names_of_one_tensor_are_counted_each(numel: int, why: str) -> None:
    """Ten thousand of 4 kB are 40 MB in a file of 300 kB; of no numbers at all, two modules."""
    names = {str(i): Kept(99) for i in range(10_000)}
    own = {"t": Kept(99, tensor(torch.zeros(numel)))} | names
    parts = [{"_parameters": p, "_buffers": {}, "_modules": {}} for p in (own, own | {"t": None})]
    inner = {str(i): persistent("Conv2d", part) for i, part in enumerate(parts)}
    whole = {"_parameters": {}, "_buffers": {}, "_modules": inner}
    with pytest.raises(SolverBenchError, match=why):
        module_tensors(read(emit(persistent("Conv2d", whole)), edm_files.NAMES))


def test_long_names_of_modules_are_refused() -> None:
    part = {"_parameters": {"a" * 201: None}, "_buffers": {}, "_modules": {}}
    with pytest.raises(SolverBenchError, match="longer than 200"):
        module_tensors(Record("m", part))


def test_attributes_are_paid_for_by_their_number() -> None:
    """20,000 attributes, given 20,000 times: 60 thousand instructions."""
    label = Label("torch.nn.modules.container", "ModuleDict")
    state = emit({str(i): None for i in range(20_000)})[2:-1]
    data = b"\x80\x04" + emit(Made(label, {}))[2:-1] + state + b"r" + bytes(4) + b"b"
    data += b"h\x00b" * 20_000 + b"."
    start = time.monotonic()
    with pytest.raises(SolverBenchError, match="1,000,000 instructions"):
        read(data, edm_files.NAMES)
    assert time.monotonic() - start < 10  # seconds; 400 million copies otherwise
    empty = b"\x80\x04" + emit(Made(label, {}))[2:-1] + state + b"b" + b"}b" * 20_000 + b"."
    assert len(read(empty, edm_files.NAMES).state) == 20_000
    assert time.monotonic() - start < 20


def test_plain_pickles_are_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    for data, why in (
        (b"<html>", "no pickle: it begins with b'<htm'"),
        (b"PK\x03\x04...", "zip of torch.save.*use the backbone ldm"),
        (b"", "is empty"),
    ):
        path.write_bytes(data)
        for load in (load_network, load_published):
            with pytest.raises(SolverBenchError, match=rf"file\.pkl: .*{why}"):
                load(path)
    for load in (load_network, load_published):
        with pytest.raises(SolverBenchError, match="is a folder"):
            load(tmp_path)
        with pytest.raises(SolverBenchError, match=r"/aaa.*\.\.\. cannot be read: File name too"):
            load(tmp_path / ("a" * 5000))


def test_tensors_that_share_numbers_to_outgrow_the_file_are_refused() -> None:
    values = read(emit(tensor(torch.zeros(1000))))
    part = {"_parameters": {str(i): values for i in range(9)}, "_buffers": {}, "_modules": {}}
    with pytest.raises(SolverBenchError, match="larger than the file"):
        module_tensors(Record("m", part))


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
        ({"dropout": 5.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
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
        {"sigma_min": -(10**400)},
        {"sigma_max": -(10**400)},
    ],
)
def test_objects_that_are_no_networks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SolverBenchError, match="refused"):
        load_bytes(emit(edm_tree(tiny()[1], TINY, **changes)))

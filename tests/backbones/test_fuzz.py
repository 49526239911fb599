"""No file runs anything, hangs or crashes: what chance and grammars write, through every door."""

import io
import json
import resource
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from solverbench import tensorfile
from solverbench.backbones import edm_files
from solverbench.backbones.edm_files import load_network
from solverbench.discriminator import R3GANDiscriminator, load, save
from solverbench.errors import SolverBenchError
from solverbench.inspecting import weights_facts
from solverbench.published_discriminator import load_published
from solverbench.sources import Source
from solverbench.torchfile import Stored, read_any
from tests.backbones.emit import (
    TINY,
    Call,
    Kept,
    Label,
    Made,
    edm_tree,
    emit,
    fixture_bytes,
    persistent,
    r3gan_tree,
    tensor,
    tiny,
)

CALLBACK = ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
HOSTILE = ("source", "unknown-class", "reduce", "nested-storage")
WATCHED = ("exec", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess")
SETTINGS: dict[str, Any] = {
    "deadline": 5000,  # milliseconds a case
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
}


class Watch:
    """Audit events that a loader must never cause; what was loaded is counted."""

    def __init__(self) -> None:
        self.on, self.seen, self.loaded = False, list[str](), Counter[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if self.on and (writes or event.startswith(WATCHED)):
            self.seen.append(f"{event} {args[:1]}")

    def open(self, kind: str, path: Path, *doors: Callable[[Path], Any]) -> None:
        """Go through every door; one line of refusal is the only fault allowed."""
        for door in doors:
            self.on = True
            try:
                with suppress(SolverBenchError):
                    door(path)
                    self.loaded[kind] += 1
            finally:
                self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    "".encode("cp437")  # names in zip files; its codec is imported, and so run, once
    return Watch()


@pytest.fixture
def bounded(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file to write in an empty folder; nothing is run, nothing appears, 1 GB is enough."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_most(1_000_000_000):
        yield tmp_path / "file"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert watch.seen == []
    assert not (tmp_path / "PWNED").exists()
    assert grown < 1e9


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


def load_zip(path: Path) -> Any:
    """All tensors of a file of ``torch.save``."""
    tree = read_any(Source(io.BytesIO(path.read_bytes())), {CALLBACK: "label"})
    state = tree.get("state_dict") if isinstance(tree, dict) else None
    return [v.read() for v in state.values() if type(v) is Stored] if type(state) is dict else None


def zipped() -> bytes:
    """A small file of ``torch.save``."""
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}}, file)
    return file.getvalue()


def small_r3gan() -> R3GANDiscriminator:
    return R3GANDiscriminator((2, 4), (1, 2), (1, 1), 1).init(torch.Generator().manual_seed(0))


FAMILIES: dict[str, tuple[Callable[[Path], Any], list[bytes]]] = {
    "edm": (
        load_network,
        [
            tiny()[0],
            tiny()[0][:3000],
            *(fixture_bytes(f"malicious/evil-edm-{name}.pkl") for name in HOSTILE),
        ],
    ),
    "zip": (load_zip, [zipped(), fixture_bytes("malicious/evil-ldm-callback.ckpt")]),
    "r3gan": (
        load_published,
        [
            emit(r3gan_tree(small_r3gan())),
            emit({"D": Call(Label("os", "system"), ("touch PWNED",))}),
            fixture_bytes("malicious/evil-r3gan-torch-save.pkl"),
            fixture_bytes("r3gan-tiny-ffhq64.pkl"),
        ],
    ),
}
CODE = b"(.0123FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8f"
CODE += b"\x90\x91\x92\x93\x94\x95\x96"
PIECES = [b"cos\nsystem\n", b"cbuiltins\nexec\n", b"X\x0b\x00\x00\x00touch PWNED\x85R"]
PIECES += [b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R", b"\xff\xff\xff\x7f"]
PIECES += [b"cR3GAN.Networks\nDiscriminator\n", b"ctorch\nbfloat16\n", b"ctorch\nload\n"]
PLACES = st.one_of(st.integers(0, 1 << 20), st.integers(0, 1200))
MUTATIONS = st.builds(
    lambda chosen, *how: (chosen[0], mutated(FAMILIES[chosen[0]][1][chosen[1]], *how)),
    st.sampled_from([(name, i) for name in FAMILIES for i in range(len(FAMILIES[name][1]))]),
    st.lists(
        st.tuples(
            PLACES,
            st.integers(0, 9),
            st.one_of(
                st.sampled_from([bytes([c]) for c in CODE]),
                st.sampled_from(PIECES),
                st.binary(max_size=9),
            ),
        ),
        max_size=5,
    ),
    st.lists(st.tuples(PLACES, PLACES), max_size=3),
    st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)),
)


def test_no_mutation_of_a_file_runs_hangs_or_crashes(watch: Watch, bounded: Path) -> None:
    """2,000 cases: bytes, instructions and names replaced and swapped, ends cut off."""
    cases = Counter[str]()
    for reader, bases in FAMILIES.values():
        bounded.write_bytes(bases[0])
        assert reader(bounded) is not None

    @hypothesis.settings(max_examples=2000, **SETTINGS)
    @hypothesis.given(made=MUTATIONS)
    def case(made: tuple[str, bytes]) -> None:
        cases[made[0]] += 1
        bounded.write_bytes(made[1])
        watch.open(made[0], bounded, FAMILIES[made[0]][0], weights_facts)

    case()
    assert min(cases.values()) >= 250
    assert watch.loaded.keys() >= FAMILIES.keys()  # some do no harm, so not all is refused


TEXT = st.text(st.characters(), max_size=5)  # lone surrogates too
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**2000), 2**2000]),
    st.integers(-5, 5),
    st.floats(),
)
ALIASES = st.builds(Kept, st.integers(0, 3))  # of what was kept before, if anything was
TENSORS = st.builds(
    lambda **lies: tensor(torch.zeros(2, 3), **lies),
    shape=st.sampled_from([(2, 3), (3,), (0, 1 << 39, 1 << 39), (2, 3, 1), ()]),
    stride=st.sampled_from([(3, 1), (1,), (0, 0, 0), (0, 0), ()]),
)
ATOMS = st.one_of(
    st.none(), st.booleans(), NUMBERS, TEXT, ALIASES, TENSORS, st.just(Label("a", "b"))
)
NAMES = st.sampled_from(["a", "b", "weight", "model", "Model", "MainLayers", "ExtractionLayer"])


def kept(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values, some of which the stream keeps, and what it kept."""
    return st.one_of(values, values, st.builds(Kept, st.integers(0, 3), values), ALIASES)


def modules(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Modules of both families, their dicts or themselves shared at times."""
    part = kept(st.dictionaries(NAMES, kept(st.one_of(TENSORS, st.none(), ATOMS)), max_size=3))
    said = {"_init_kwargs": part, "sigma_min": NUMBERS, "sigma_max": NUMBERS}
    said |= {"DataType": st.sampled_from([Label("torch", "bfloat16"), None])}
    said |= {"_non_persistent_buffers_set": st.lists(kept(ATOMS), max_size=2)}
    state = st.fixed_dictionaries(
        {
            "_parameters": part,
            "_buffers": part,
            "_modules": kept(st.dictionaries(NAMES, kept(inner), max_size=3)),
            "_init_args": st.just(()),
        },
        optional=said,
    )
    known = st.sampled_from(["EDMPrecond", "VEPrecond", "SongUNet", "DhariwalUNet", "Conv2d"])
    label = st.just(Label("R3GAN.Networks", "DiscriminatorStage"))
    return st.one_of(st.builds(persistent, known, state), st.builds(Made, label, kept(state)))


TREES = st.one_of(
    st.builds(
        lambda key, tree: {key: tree},
        st.sampled_from(["ema", "D"]),
        kept(st.recursive(ATOMS, modules, max_leaves=12)),
    ),
    st.builds(lambda **changes: edm_tree(tiny()[1], TINY, **changes), sigma_min=ATOMS),
    st.builds(
        lambda key, value: edm_tree(tiny()[1], TINY | {key: value}), st.sampled_from([*TINY]), ATOMS
    ),
)


def test_no_pickle_of_a_grammar_runs_hangs_or_crashes(watch: Watch, bounded: Path) -> None:
    """Trees of modules with what real ones hold, wrong values, and parts in many places."""

    @hypothesis.settings(max_examples=600, **SETTINGS)
    @hypothesis.given(tree=TREES)
    def case(tree: Any) -> None:
        bounded.write_bytes(emit(tree))
        watch.open("grammar", bounded, load_network, load_published, weights_facts)

    case()
    assert watch.loaded["grammar"] > 0


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def changed(facts: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Facts of which one, at the top or one level below, is any JSON value; or any value."""
    inner = [(k, i) for k, v in facts.items() if isinstance(v, dict) for i in v]
    below = st.builds(
        lambda at, value: facts | {at[0]: facts[at[0]] | {at[1]: value}},
        st.sampled_from([*inner, *((k, "new") for k, _ in inner)]),
        JSON,
    )
    above = st.builds(lambda k, value: facts | {k: value}, st.sampled_from([*facts, "new"]), JSON)
    return st.one_of(above, below, below, JSON)


def test_no_facts_of_a_checked_file_crash(watch: Watch, bounded: Path, tmp_path: Path) -> None:
    """Files of ours with a checksum that fits, whose facts are anything."""
    path, pickled = tmp_path / "d.safetensors", tmp_path / "d.pkl"
    pickled.write_bytes(tiny()[0])
    edm_files.save_network(path, *load_network(pickled))
    edm = tensorfile.read(path, edm_files.FORMAT)
    save(path, small_r3gan(), {"steps": 3})
    judge = tensorfile.read(path, "solverbench-discriminator-1")
    doors: dict[str, list[Callable[[Path], Any]]] = {
        edm_files.FORMAT: [load_network],
        "solverbench-discriminator-1": [load, lambda p: load(p, "stored")],
        "solverbench-other-1": [],
    }
    tensors = {edm_files.FORMAT: edm[0]}
    cases = st.one_of(
        st.tuples(st.just(edm_files.FORMAT), changed(edm[1])),
        st.tuples(st.sampled_from([*doors][1:]), changed(judge[1])),
    )

    @hypothesis.settings(max_examples=600, **SETTINGS)
    @hypothesis.given(made=cases)
    def case(made: tuple[str, Any]) -> None:
        form, facts = made
        tensorfile.write(path, form, tensors.get(form, judge[0]), facts)
        watch.open(form, path, *doors[form], weights_facts)

    case()
    assert watch.loaded.keys() >= doors.keys()


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "U8", "BOOL", "F8_E4M3"]), JSON),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), JSON),
        "data_offsets": st.one_of(st.just([0, 8]), st.lists(NUMBERS, max_size=2), JSON),
    }
)


def test_no_header_of_a_safetensors_file_crashes(watch: Watch, bounded: Path) -> None:
    @hypothesis.settings(max_examples=600, **SETTINGS)
    @hypothesis.given(
        head=st.one_of(st.dictionaries(TEXT, ENTRIES, max_size=2), JSON),
        said=st.one_of(st.none(), st.dictionaries(st.sampled_from(["format", "facts"]), JSON)),
    )
    def case(head: Any, said: Any) -> None:
        if isinstance(head, dict) and said is not None:
            head = head | {"__metadata__": said}
        text = json.dumps(head).encode()
        bounded.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        watch.open("header", bounded, tensorfile.read_plain, weights_facts)

    case()

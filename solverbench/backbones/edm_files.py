"""Files of EDM networks: published pickles, read without running them, and safetensors."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.edm_preconditioning import KINDS, Precond, build
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.sources import Source, expect_file, open_source, refuse, unfit
from solverbench.torchfile import NUMPY, Stored, module_tensors, read_published
from solverbench.unpickle import Names, Record

FORMAT = "solverbench-edm-1"
HIGHEST = 1e9  # finite noise level
KEYWORDS, TEXT, PROGRAM = 100, 100, 1 << 20  # how many; letters of a fact, of a program text
INNER = ("SongUNet", "DhariwalUNet")
PARTS = (
    *("UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "FourierEmbedding"),
    *("EDMLoss", "VELoss", "VPLoss", "AugmentPipe"),
)
CLASSES = frozenset([*KINDS, *INNER, *PARTS])


class Facts(NamedTuple):
    """What a file says about its network.

    Attributes:
        kind: preconditioner, one of ``KINDS``.
        keywords: of its constructor.
        sigma_min: smallest noise level.
        sigma_max: largest one; None where there is no bound.
        dtype: type of the stored weights.
        source_sha256: of the program text inside a pickle, which is never run; may be empty.
        file_sha256: of the published file.
    """

    kind: str
    keywords: dict[str, Any]
    sigma_min: float
    sigma_max: float | None
    dtype: str
    source_sha256: str
    file_sha256: str


def load_network(path: Path) -> tuple[Precond, Facts]:
    """A network from a published pickle or a converted safetensors file.

    Args:
        path: the file; told apart by its end.

    Returns:
        The network in float32, frozen and in eval mode, and what the file says about it.

    Raises:
        SolverBenchError: for a missing, damaged, foreign or hostile file.
    """
    if path.suffix == ".safetensors":
        tensors, said = tensorfile.read(path, FORMAT)
        try:
            facts = facts_of(said)
            return filled(facts, tensors), facts
        except SolverBenchError as error:
            raise SolverBenchError(f"{path}: {error}") from error
    expect_file(path, "the pickle of an EDM network")
    with open_source(path) as source:
        facts, stored = inspect(source, sha256_of(path))
        return filled(facts, stored), facts


def save_network(path: Path, network: Precond, facts: Facts) -> None:
    """Write a network so that ``load_network`` reads it, in the type it was published in."""
    dtype = getattr(torch, facts.dtype)
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    tensorfile.write(path, FORMAT, tensors, facts._asdict())


def inspect(source: Source, digest: str = "") -> tuple[Facts, dict[str, Stored]]:
    """What a published pickle holds, without building or reading the weights.

    Args:
        source: the file.
        digest: its SHA-256.

    Returns:
        Its facts, and its tensors by name, still in the file.

    Raises:
        SolverBenchError: for anything but a network of known classes.
    """
    tree = read_published(source, NAMES)
    if not isinstance(tree, dict) or type(tree.get("ema")) is not Record:
        refuse("it holds no network under 'ema'")
    record: Record = tree["ema"]
    if record.name not in KINDS:
        refuse(f"its network is {record.name[:80]!a}; known are {', '.join(KINDS)}")
    tensors = module_tensors(record)
    inner = record.state["_modules"].get("model")
    if type(inner) is not Record or inner.name not in INNER:
        refuse(f"the inner network is none of {', '.join(INNER)}")
    if record.state.get("_init_args") != ():
        refuse("it does not say what its network was made from")
    keywords = _keywords(record.state.get("_init_kwargs"))
    if keywords.setdefault("model_type", inner.name) != inner.name:
        refuse("model_type is not the class of the inner network")
    low, high = _range(*(record.state.get(name) for name in ("sigma_min", "sigma_max")))
    kinds = {str(value.storage.dtype).removeprefix("torch.") for value in tensors.values()}
    dtype = "float16" if kinds == {"float16"} else "float32"
    return Facts(record.name, keywords, low, high, dtype, record.note, digest), tensors


def facts_of(said: dict[str, Any]) -> Facts:
    """What the header of a converted file says, checked as strictly as a pickle is.

    Args:
        said: JSON values.

    Raises:
        SolverBenchError: for what no published network has.
    """
    if said.keys() != set(Facts._fields):
        unfit("its facts are not those of an EDM network")
    facts = Facts(**said)
    texts = (facts.kind, facts.dtype, facts.source_sha256, facts.file_sha256)
    if not all(type(text) is str and len(text) <= TEXT for text in texts):
        unfit("a fact about its network is no short text")
    if facts.kind not in KINDS or facts.dtype not in ("float16", "float32"):
        unfit(f"it is {facts.kind!a} in {facts.dtype!a}; known are {', '.join(KINDS)}")
    keywords = _keywords(facts.keywords)
    if keywords.get("model_type") not in INNER:
        unfit(f"its model_type is none of {', '.join(INNER)}")
    low, high = _range(facts.sigma_min, math.inf if facts.sigma_max is None else facts.sigma_max)
    return facts._replace(keywords=keywords, sigma_min=low, sigma_max=high)


def filled(facts: Facts, tensors: dict[str, Tensor] | dict[str, Stored]) -> Precond:
    """The network with its weights, in float32: of a float16 file, twice the size.

    Args:
        facts: of the network.
        tensors: by name; taken out one by one, so that no two copies of all are held at once.

    Raises:
        SolverBenchError: where tensors are missing, foreign, of another shape or not finite.
    """
    network = build(facts.kind, facts.keywords)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    for what, keys in (
        ("lacks parameters", wanted.keys() - tensors.keys()),
        ("has parameters too many", tensors.keys() - wanted.keys()),
        ("has other sizes", {k for k in wanted if k in tensors and tensors[k].shape != wanted[k]}),
    ):
        if keys:
            first = sorted(keys)[0][:80]
            raise SolverBenchError(f"the network {what}: {len(keys)}, the first is {first!a}")
    read: dict[str, Tensor] = {}
    for key in wanted:
        value = tensors.pop(key)
        read[key] = (value.read() if isinstance(value, Stored) else value).float()
        ends = torch.stack(read[key].aminmax()) if read[key].numel() else read[key]
        if not ends.isfinite().all():  # of every number: NaN is passed on, nothing is copied
            raise SolverBenchError(f"the weights {key} are not finite numbers")
    network.load_state_dict(read, assign=True)
    network.finish()
    network.sigma_min = facts.sigma_min
    network.sigma_max = math.inf if facts.sigma_max is None else facts.sigma_max
    return network.eval().requires_grad_(False)


def _keywords(given: Any) -> dict[str, Any]:
    """Keywords of the constructor, JSON values only."""
    if not isinstance(given, dict) or len(given) > KEYWORDS:
        unfit("it does not say what its network was made from")
    kept: dict[str, Any] = {}
    for key, value in given.items():
        flat = value if type(value) is list else [value]
        plain = len(flat) <= KEYWORDS and all(type(v) in (int, float, str, bool) for v in flat)
        if type(key) is not str or not plain:
            unfit("a keyword of its network is no number, text or short list of them")
        kept[key] = value
    return kept


def _range(*ends: Any) -> tuple[float, float | None]:
    """Smallest and largest noise level; None for no bound."""
    low, high = map(_level, ends)
    if not 0 <= low < high:
        unfit(f"the range of noise levels of its network is {low:g} to {high:g}")
    return low, None if math.isinf(high) else high


def _level(value: Any) -> float:
    if type(value) not in (int, float) or not (value == math.inf or abs(value) <= HIGHEST):
        unfit("its network has no range of noise levels")
    return float(value)


def _persistent(source: Source, args: tuple[Any, ...]) -> Record:
    """``_reconstruct_persistent_obj``: the state of a known class; its program text is hashed."""
    meta = args[0] if len(args) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != 6:
        refuse("a persistent object of unknown layout")
    name, state, text = (meta.get(key) for key in ("class_name", "state", "module_src"))
    if type(name) is not str or not isinstance(state, dict) or type(text) is not str:
        refuse("a persistent object without name, state or text")
    if len(text) > PROGRAM:
        refuse(f"a program text has more than {PROGRAM:,} letters")
    if name not in CLASSES:
        refuse(f"the class {name[:80]!a} is not among those that network files need")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Record(name, state, note=digest)


NAMES: Names = {
    **NUMPY,
    ("dnnlib.util", "EasyDict"): "dict",
    ("torch.nn.modules.container", "ModuleDict"): "record",
    ("torch.nn.modules.container", "ModuleList"): "record",
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
}

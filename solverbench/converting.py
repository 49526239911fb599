"""Published pickles and checkpoints to safetensors, each with a model card; nothing is run."""

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from solverbench import discriminator, published_discriminator, weights
from solverbench.backbones import edm_files, ldm_files
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of, write_text
from solverbench.inspecting import Facts, weights_facts
from solverbench.sources import expect_file


class Converter(NamedTuple):
    """A kind of file that can be converted.

    Attributes:
        kind: what ``weights_facts`` says of it begins with this.
        write: given the published file, the new one and a configuration.
    """

    kind: str
    write: Callable[[Path, Path, Path | None], None]


def convert(file: Path, out: Path | None = None, config: Path | None = None) -> tuple[Path, Path]:
    """Turn a published file into safetensors.

    Args:
        file: EDM pickle, R3GAN pickle or LDM checkpoint.
        out: where; beside ``file`` with the ending ``.safetensors`` by default.
        config: CompVis YAML of an LDM checkpoint; not needed for published ones.

    Returns:
        The new file and its model card, the same name with the ending ``.md``.

    Raises:
        SolverBenchError: for a file that is damaged, foreign, hostile, or safetensors already.
    """
    expect_file(file, "what can be converted")
    made = out or file.with_suffix(".safetensors")
    if made.suffix != ".safetensors":
        raise SolverBenchError(f"--out is {made}; its name must end with .safetensors")
    facts = weights_facts(file)
    for converter in CONVERTERS:
        if facts["kind"].startswith(converter.kind) and made != file:
            converter.write(file, made, config)
            card = made.with_suffix(".md")
            write_text(card, _card(file, facts))
            return made, card
    known = ", ".join(converter.kind for converter in CONVERTERS)
    raise SolverBenchError(f"{file}: {facts['kind']}; what can be converted: {known}")


def _edm(file: Path, made: Path, config: Path | None) -> None:
    edm_files.save_network(made, *edm_files.load_network(file))


def _r3gan(file: Path, made: Path, config: Path | None) -> None:
    """D without its label embedding, in float32, with the types that its stages compute in."""
    network = published_discriminator.load_published(file, "stored")
    facts = {"file_sha256": sha256_of(file)}
    discriminator.save(made, network, facts, dtype=torch.float32)


def _ldm(file: Path, made: Path, config: Path | None) -> None:
    ldm_files.save_ldm(made, ldm_files.load_ldm(file, config))


CONVERTERS = (
    Converter("EDM network, published pickle", _edm),
    Converter("R3GAN discriminator, published pickle", _r3gan),
    Converter("LDM checkpoint", _ldm),
)


def _card(file: Path, facts: Facts) -> str:
    """A model card; the licence is the catalogue's where the file is one of it."""
    items = [i for i in weights.catalogue().values() if i.file.endswith(f"/{file.name}")]
    here = [i for i in items if file.absolute() == weights.path(i.name)]  # names are not unique
    item = here[0] if here else items[0] if len(items) == 1 else None
    lines = [f"# {item.name if item else file.stem}", ""]
    if item:
        lines += [item.about, "", f"Origin: {item.origin}", ""]
    licence = item.licence if item else "unknown; see where the file came from"
    lines += [f"Licence of the weights: {licence}.", "", "| | |", "| --- | --- |"]
    cells = [(_escaped(key), _cell(value)) for key, value in facts.items() if value != ""]
    lines += [f"| {key} | {value} |" for key, value in cells]
    who = f"solverbench {version('solverbench')}"
    made = f"Converted from `{file.name}` by {who}; no code in it was run."
    return "\n".join([*lines, "", made, ""])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return _escaped(", ".join(f"{key} {inner}" for key, inner in value.items()))
    return f"{value:,}" if isinstance(value, int) else _escaped(str(value))


def _escaped(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\|`<>\[\]&!])", r"\\\1", text)

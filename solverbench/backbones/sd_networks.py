"""The networks and the tokenizer of a checked Stable Diffusion folder."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from solverbench.backbones.latent import WITHOUT_EXTRA, diffusers_of
from solverbench.backbones.sd_files import CLASSES, WEIGHTS, SDFolder, refuse
from solverbench.backbones.settings import LARGEST_JSON, UNBUILDABLE, read_json, readable, shown
from solverbench.errors import SolverBenchError

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class SDParts(NamedTuple):
    """Networks of a folder, in float32 and eval mode on the CPU.

    Attributes:
        unet: diffusers ``UNet2DConditionModel``.
        vae: diffusers ``AutoencoderKL``.
        text_encoder: transformers ``CLIPTextModel``.
        tokenizer: transformers ``CLIPTokenizer``.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: Any


def load_sd(folder: SDFolder, name: str = "sd") -> SDParts:
    """Build the networks of a folder and fill them from its safetensors files.

    Args:
        folder: from ``open_sd``.
        name: backbone that needs them, for messages.

    Raises:
        SolverBenchError: for weights that are torn, missing, foreign or of another shape, for
            settings that the libraries refuse, and where these are not installed.
    """
    diffusers, transformers = diffusers_of(name), _transformers_of(name)

    def encoder(**settings: Any) -> nn.Module:
        unread = {"bos_token_id": 0, "eos_token_id": 2}  # these matter to the pooled output only
        config = transformers.CLIPTextConfig(**settings, **unread)
        made: nn.Module = transformers.CLIPTextModel(config)
        return made

    return SDParts(
        _filled(folder, "unet", diffusers.UNet2DConditionModel),
        _filled(folder, "vae", diffusers.AutoencoderKL),
        _filled(folder, "text_encoder", encoder),
        _tokenizer(folder, transformers.CLIPTokenizer),
    )


def _transformers_of(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SolverBenchError(WITHOUT_EXTRA.format(name=name)) from error
    return transformers


def _filled(folder: SDFolder, part: str, kind: Any) -> nn.Module:
    """A network with its weights; every tensor must be there, and none too many."""
    settings, file = folder.configs[part], f"{part}/config.json"
    known = inspect.signature(kind).parameters
    unknown = [k for k, v in settings.items() if k not in known and v]
    if part != "text_encoder" and unknown:
        refuse(folder.path, file, f"{shown(unknown[0])} is no setting of {CLASSES[part]}")
    if part != "text_encoder":
        settings = {key: value for key, value in settings.items() if key in known}
    try:
        with torch.device("meta"):
            made: nn.Module = kind(**settings)
    except UNBUILDABLE as error:
        line = str(error).strip().partition("\n")[0]
        refuse(folder.path, file, f"makes no {CLASSES[part]}: {line}")
    where = folder.path / part / WEIGHTS[part]
    try:
        tensors = load_file(where)
    except (OSError, SafetensorError) as error:
        raise SolverBenchError(f"{where} cannot be read as safetensors: {error}") from error
    made.load_state_dict(_matched(where, made.state_dict(), tensors), assign=True)
    _fill_positions(made)
    return made.eval().requires_grad_(False)


def _matched(
    where: Path, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Stored tensors under the names of the network, in float32."""
    stored = {_plain_name(k): v for k, v in tensors.items() if not k.endswith("position_ids")}
    names = {_plain_name(key): key for key in wanted}
    other = {k for k in names if k in stored and stored[k].shape != wanted[names[k]].shape}
    for what, keys in (
        ("lacks tensors", names.keys() - stored.keys()),
        ("has tensors too many", stored.keys() - names.keys()),
        ("has tensors of another shape", other),
    ):
        if keys:
            raise SolverBenchError(f"{where} {what}: {len(keys)}, first {shown(sorted(keys)[0])}")
    return {names[key]: value.float() for key, value in stored.items()}


def _plain_name(key: str) -> str:
    """One name for the spellings of all releases of the libraries."""
    key = key.removeprefix("text_model.")
    return re.sub(
        r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)",
        lambda match: OLD_NAMES[match[0]],
        key,
    )


def _fill_positions(made: nn.Module) -> None:
    """Tables of positions 0, 1, ... are in no file; they were made without memory."""
    for key, table in list(made.named_buffers()):
        parent, _, leaf = key.rpartition(".")
        assert leaf == "position_ids", key
        setattr(made.get_submodule(parent), leaf, torch.arange(table.shape[-1])[None])


def _tokenizer(folder: SDFolder, kind: Any) -> Any:
    """The tokenizer from its vocabulary and merges alone; it pads with the end token."""
    path, end = folder.path, "<|endoftext|>"
    for file in ("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"):
        if (path / file).is_file():
            pad = read_json(path / file).get("pad_token", end)
            if (pad.get("content") if isinstance(pad, dict) else pad) != end:
                refuse(path, file, f"pads with {shown(pad)}; Stable Diffusion 1.x with {end}")
    vocab, most = read_json(path / "tokenizer/vocab.json"), folder.configs["text_encoder"]
    if not all(type(v) is int and 0 <= v < most["vocab_size"] for v in vocab.values()):
        refuse(path, "tokenizer/vocab.json", "holds tokens that the text encoder does not have")
    if not {"<|startoftext|>", end} <= vocab.keys():
        refuse(path, "tokenizer/vocab.json", "has no token for the start or the end of a text")
    merges = _merges(path, "tokenizer/merges.txt", vocab)
    return kind(vocab=vocab, merges=merges, model_max_length=folder.num_tokens)


def _merges(path: Path, file: str, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    with readable(path / file):
        if (path / file).stat().st_size > LARGEST_JSON:
            refuse(path, file, f"has more than {LARGEST_JSON} bytes")
        data = (path / file).read_bytes()
    try:
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except ValueError:
        refuse(path, file, "is no UTF-8 text")
    rows = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    for row in rows:
        if len(row) != 2 or not {*row, "".join(row)} <= vocab.keys():
            refuse(path, file, f"{shown(' '.join(row))} is no pair of tokens of vocab.json")
    return [(row[0], row[1]) for row in rows]

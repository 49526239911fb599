"""Stable Diffusion folders in the layout of diffusers: checked first, and nothing in them is run.

The classes are chosen here and never by a folder; of its settings only plain values are passed on,
and weights come from safetensors files only. No hub client and no ``from_pretrained`` is used, so
that nothing can be fetched.

Source: backbones.md section 4; ecosystem.md section 2.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from solverbench import tensorfile
from solverbench.backbones import settings
from solverbench.backbones.settings import read_json, readable, shown
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.schedule import Output, VPDiscrete
from solverbench.sources import open_source

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
VOCABULARY = ("vocab.json", "merges.txt")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
SCHEDULERS = (
    *("PNDM", "DDIM", "DDPM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete"),
    *("HeunDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"),
    *("DEISMultistep", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
)
COMPONENTS: dict[str, set[tuple[str | None, str | None]]] = {
    "unet": {("diffusers", CLASSES["unet"])},
    "vae": {("diffusers", CLASSES["vae"])},
    "text_encoder": {("transformers", CLASSES["text_encoder"])},
    "tokenizer": {("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")},
    "scheduler": {("diffusers", f"{name}Scheduler") for name in SCHEDULERS},
    "safety_checker": {("stable_diffusion", "StableDiffusionSafetyChecker"), (None, None)},
    "feature_extractor": {
        ("transformers", "CLIPFeatureExtractor"),
        ("transformers", "CLIPImageProcessor"),
        (None, None),
    },
    "image_encoder": {(None, None)},
}
ENCODER_SETTINGS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), int),
    **dict.fromkeys(("num_attention_heads", "max_position_embeddings"), int),
    "hidden_act": str,
    "layer_norm_eps": (float, int),
}
OTHER_INPUTS = (
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"),
    "time_cond_proj_dim",
)  # settings of UNets that read more than a state, a step and a text
UNET = "unet/config.json"


class SDFacts(NamedTuple):
    """What a folder says about its model, read without building it.

    Attributes:
        parameters: by part: ``unet``, ``vae``, ``text_encoder``.
        dtypes: stored types of the weights by part, joined by commas.
        state_shape: of latents, (C, H, W).
        image_shape: of decoded images, (3, H', W').
        beta_first: first beta of the schedule.
        beta_last: last one.
        output: what the network gives, ``eps`` or ``v``.
        scaling_factor: latents are this times what the autoencoder makes.
        context: tokens and width of a prompt's embedding.
    """

    parameters: dict[str, int]
    dtypes: dict[str, str]
    state_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    beta_first: float
    beta_last: float
    output: Output
    scaling_factor: float
    context: tuple[int, int]


@dataclass(frozen=True)
class SDFolder:
    """A folder whose settings have been checked.

    Attributes:
        path: of the folder.
        configs: of ``unet``, ``vae`` and ``text_encoder``; plain values only.
        beta_first: first beta of the schedule, scaled linear over 1000 steps.
        beta_last: last one.
        output: what the network gives.
    """

    path: Path
    configs: dict[str, dict[str, Any]]
    beta_first: float
    beta_last: float
    output: Output

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What solvers integrate, (C, H, W)."""
        unet = self.configs["unet"]
        return unet["in_channels"], unet["sample_size"], unet["sample_size"]

    @property
    def scaling_factor(self) -> float:
        """Latents are this times what the autoencoder makes."""
        return float(self.configs["vae"]["scaling_factor"])

    @property
    def num_tokens(self) -> int:
        """Tokens of a prompt."""
        return int(self.configs["text_encoder"]["max_position_embeddings"])

    def schedule(self, t_min: float) -> VPDiscrete:
        """The noise schedule, in float64.

        Raises:
            ValueError: for a ``t_min`` outside (0, 1).
        """
        if not 0 < t_min < 1:
            raise ValueError(f"t_min is {t_min}; it must lie between 0 and 1")
        return VPDiscrete(self.beta_first, self.beta_last, t_min)


def open_sd(path: Path) -> SDFolder:
    """Check what a folder says about itself; imports no model library.

    Args:
        path: folder with ``model_index.json`` and its parts.

    Raises:
        SolverBenchError: for a missing part, a class other than those of Stable Diffusion 1.x, or
            settings that are not supported.
    """
    with readable(path):
        _check_components(path)
        for part, name in WEIGHTS.items():
            _check_present(path / part, name)
        for name in VOCABULARY:
            _check_present(path / "tokenizer", name)
    configs = {part: _config(path, part) for part in WEIGHTS}
    try:
        settings.check_sizes(configs["unet"], tuple(settings.SIZES))
    except ValueError as error:
        refuse(path, UNET, str(error))
    _check_agreement(path, *configs.values())
    return SDFolder(path, configs, *_schedule(path))


def inspect_sd(path: Path) -> SDFacts:
    """What a folder holds, from its settings and the headers of its weights.

    Raises:
        SolverBenchError: as ``open_sd``; for a torn file of weights.
    """
    folder = open_sd(path)
    parameters, dtypes = {}, {}
    for part, name in WEIGHTS.items():
        with open_source(path / part / name) as source:
            stored, _ = tensorfile.inspect(source)
        kept = [value for key, value in stored.items() if not key.endswith("position_ids")]
        parameters[part] = sum(math.prod(value.shape) for value in kept)
        kinds = {str(value.storage.dtype).removeprefix("torch.") for value in kept}
        dtypes[part] = ", ".join(sorted(kinds))
    vae = folder.configs["vae"]
    size = folder.state_shape[1] * 2 ** (len(vae.get("block_out_channels", [0])) - 1)
    return SDFacts(
        parameters=parameters,
        dtypes=dtypes,
        state_shape=folder.state_shape,
        image_shape=(vae.get("out_channels", 3), size, size),
        beta_first=folder.beta_first,
        beta_last=folder.beta_last,
        output=folder.output,
        scaling_factor=folder.scaling_factor,
        context=(folder.num_tokens, folder.configs["text_encoder"]["hidden_size"]),
    )


def identity(folder: SDFolder, prompts: Path | None) -> str:
    """One SHA-256 over everything that samples follow from; reads files in pieces.

    That is: the weights, settings and vocabulary of the parts in a fixed order, the schedule, and
    the prompts, so that no two lists of prompts can share samples.
    """
    files = [folder.path / part / name for part, name in WEIGHTS.items()]
    files += [folder.path / "tokenizer" / name for name in VOCABULARY]
    found: list[Any] = [folder.configs, folder.beta_first, folder.beta_last, folder.output]
    with readable(folder.path):
        found += [sha256_of(path) for path in files]
        found.append(sha256_of(prompts))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def refuse(path: Path, file: str, reason: str) -> NoReturn:
    """Raise the error for a file of a folder."""
    raise SolverBenchError(f"{path / file}: {reason}")


def _check_components(path: Path) -> None:
    """Refuse every class but those of Stable Diffusion, by exact names."""
    if not path.is_dir():
        raise SolverBenchError(f"{path} is no folder; wanted: one of Stable Diffusion 1.x")
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        kind = shown(index.get("_class_name"))
        refuse(path, "model_index.json", f"is of a {kind}; wanted: StableDiffusionPipeline")
    for part in (*WEIGHTS, "tokenizer", "scheduler"):
        if part not in index:
            refuse(path, "model_index.json", f"names no {part}")
    for part, named in index.items():
        if part.startswith("_") or named is None or isinstance(named, bool):
            continue
        pairs = COMPONENTS.get(part, ())
        if not isinstance(named, list) or named not in [list(pair) for pair in pairs]:
            allowed = ", ".join(sorted(f"{a}.{b}" for a, b in pairs if a)) or "no such part"
            kind = f"{shown(part)} as {shown(named)}"
            refuse(path, "model_index.json", f"names {kind}; allowed: {allowed}")


def _check_present(folder: Path, name: str) -> None:
    if (folder / name).is_file():
        return
    found = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".safetensors"))
    if any(file.endswith(".bin") for file in found):
        refuse(folder, name, f"is missing, and {found[0]} is a pickle, which is never read here")
    refuse(folder, name, f"is missing; other weights there: {', '.join(found) or 'none'}")


def _config(path: Path, part: str) -> dict[str, Any]:
    """Settings of a part, without private ones; its class is as expected."""
    file = f"{part}/config.json"
    read = read_json(path / file)
    named = read.get("architectures" if part == "text_encoder" else "_class_name")
    if named != ([CLASSES[part]] if part == "text_encoder" else CLASSES[part]):
        refuse(path, file, f"is of class {shown(named)}; wanted: {CLASSES[part]}")
    kept = {key: value for key, value in read.items() if not key.startswith("_")}
    if part == "text_encoder":
        kept = {key: kept.get(key) for key in ENCODER_SETTINGS}
        for key, kind in ENCODER_SETTINGS.items():
            if not isinstance(kept[key], kind):
                refuse(path, file, f"{key} is {shown(kept[key])}")
    try:
        settings.check_settings(kept)
    except ValueError as error:
        refuse(path, file, str(error))
    return kept


def _check_agreement(
    path: Path, unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any]
) -> None:
    """Refuse parts that are not those of Stable Diffusion 1.x or do not fit each other."""
    for name, value in unet.items():
        if name in OTHER_INPUTS and value is not None:
            refuse(path, UNET, f"sets {name}: the network wants more than a text")
    same = (
        ("in_channels", unet.get("in_channels"), "out_channels", unet.get("out_channels", 4)),
        ("in_channels", unet["in_channels"], "latent_channels", vae.get("latent_channels", 4)),
        (
            "cross_attention_dim",
            unet.get("cross_attention_dim"),
            "hidden_size",
            text["hidden_size"],
        ),
    )
    for one, x, other, y in same:
        if x != y:
            refuse(path, UNET, f"{one} is {x}, but {other} is {y}: these must agree")
    factor = vae.setdefault("scaling_factor", 0.18215)
    if type(factor) is not float or not 0 < factor < math.inf:
        refuse(path, "vae/config.json", f"scaling_factor is {shown(factor)}; wanted: above 0")
    if vae.get("shift_factor") is not None or vae.get("latents_mean") is not None:
        refuse(path, "vae/config.json", "shifts latents, which Stable Diffusion 1.x does not")


def _schedule(path: Path) -> tuple[float, float, Output]:
    """Both ends of the betas, and what the network gives."""
    file = "scheduler/scheduler_config.json"
    given = {
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "beta_schedule": None,
        "prediction_type": "epsilon",
        **read_json(path / file),
    }
    outputs: dict[object, Output] = {"epsilon": "eps", "v_prediction": "v"}
    for key, allowed in (
        ("num_train_timesteps", [1000]),
        ("beta_schedule", ["scaled_linear"]),
        ("trained_betas", [None]),
        ("rescale_betas_zero_snr", [False]),
        ("prediction_type", [*outputs]),
    ):
        if given[key] not in allowed:
            names = ", ".join(str(value) for value in allowed)
            refuse(path, file, f"{key} is {shown(given[key])}; supported: {names}")
    first, last = given.get("beta_start"), given.get("beta_end")
    if not (type(first) is float and type(last) is float and 0 < first < last < 1):
        refuse(path, file, f"beta_start is {shown(first)}, beta_end {shown(last)}")
    return first, last, outputs[given["prediction_type"]]

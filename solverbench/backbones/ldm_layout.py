"""What a latent diffusion model is made of, and where CompVis files keep each of its tensors.

Source: Rombach et al. (2022); backbones.md sections 3.2 to 3.4.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from solverbench.errors import SolverBenchError

KINDS = ("UNet2DModel", "UNet2DConditionModel", "VQModel", "AutoencoderKL")  # of diffusers
MOST_INPUTS = 1024  # input blocks of a network that is told from names
RAW, EMA = "model.diffusion_model.", "model_ema.diffusion_model"
STAGE, CLASSES = "first_stage_model.", "cond_stage_model.embedding.weight"
# width, multiples, context: heads or their width, side of the latents
PUBLISHED: dict[tuple[int, tuple[int, ...], int], tuple[int | None, int]] = {
    (224, (1, 2, 3, 4), 0): (32, 64),  # beds256
    (192, (1, 2, 3, 5), 512): (1, 64),  # cin256-v2
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
QKV = {"to_q": 0, "to_k": 1, "to_v": 2}
STAGE_RULES = (  # of names in a first stage, diffusers to CompVis, one after the other
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Hyperparameters, as JSON values.

    Attributes:
        unet: class (``_class_name``) and keywords of the diffusers UNet.
        first_stage: the same of the autoencoder.
        num_rows: of the class embedding, the null class among them; 0 for none.
        width: of a class embedding.
        beta_first: first beta of 1000, which are linear in their square roots.
        beta_last: last one.
        scale: latents are this times what the encoder gives.
    """

    unet: dict[str, Any]
    first_stage: dict[str, Any]
    num_rows: int
    width: int
    beta_first: float
    beta_last: float
    scale: float


class Facts(NamedTuple):
    """What a file says about its model.

    Attributes:
        layout: hyperparameters.
        weights: ``ema`` (averaged) or ``raw`` where a CompVis file says so, else ``diffusers``.
        dtype: type of the stored weights.
        num_parameters: of the UNet.
        num_stage_parameters: of the autoencoder.
        file_sha256: of the published file, or over the files of a folder.
    """

    layout: Layout
    weights: str
    dtype: str
    num_parameters: int
    num_stage_parameters: int
    file_sha256: str

    @property
    def num_classes(self) -> int:
        """Classes, without the null class; 0 for an unconditional model."""
        return max(0, self.layout.num_rows - 1)

    @property
    def architecture(self) -> str:
        """Both networks in a few words."""
        unet, stage = self.layout.unet, self.layout.first_stage
        widths = ", ".join(str(width) for width in unet["block_out_channels"])
        return f"{unet['_class_name']} ({widths}) with {stage['_class_name']}"


class Place(NamedTuple):
    """Where a CompVis file keeps a tensor.

    Attributes:
        key: name there.
        part: 0, 1, 2 where the tensor is the q, k, v of a common one, else None.
    """

    key: str
    part: int | None = None


def unet_keywords(
    sizes: tuple[int, int, int],
    widths: list[int],
    attends: list[bool],
    num_blocks: int,
    heads: int | list[int] | None,
    context: int | None,
    depth: int = 1,
) -> dict[str, Any]:
    """Class and keywords of a diffusers UNet.

    Args:
        sizes: channels in, channels out, side of the latents.
        widths: channels of each level.
        attends: whether a level has attention.
        num_blocks: residual blocks of a level.
        heads: their number with a context (of each level, or of all), else their channels.
        context: width of what the network attends to; None for an unconditional one.
        depth: of each transformer.
    """
    cross = "CrossAttn" if context else "Attn"
    down = [f"{cross}DownBlock2D" if has else "DownBlock2D" for has in attends]
    up = [f"{cross}UpBlock2D" if has else "UpBlock2D" for has in reversed(attends)]
    shared = {
        "sample_size": sizes[2],
        "in_channels": sizes[0],
        "out_channels": sizes[1],
        "layers_per_block": num_blocks,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": heads,  # the number of heads in the conditional class
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    if context is None:
        return {"_class_name": "UNet2DModel", **shared}
    more = {"cross_attention_dim": context, "transformer_layers_per_block": depth}
    return {"_class_name": "UNet2DConditionModel", **shared, **more}


def stage_keywords(
    z: int, embed: int, num_codes: int | None, widths: list[int], num_blocks: int, size: int
) -> dict[str, Any]:
    """Class and keywords of a diffusers autoencoder; without codes it is a KL one.

    Raises:
        ValueError: for a KL autoencoder whose latents are not as wide as its encoder's output.
    """
    num = len(widths)
    shared = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": z,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * num,
        "up_block_types": ["UpDecoderBlock2D"] * num,
        "layers_per_block": num_blocks,
        "norm_num_groups": 32,
        "sample_size": size,
        "scaling_factor": 1.0,
    }
    if num_codes is None:
        if embed != z:
            raise ValueError("embed_dim of an AutoencoderKL must be its z_channels")
        return {"_class_name": "AutoencoderKL", **shared}
    return {
        "_class_name": "VQModel",
        **shared,
        "num_vq_embeddings": num_codes,
        "vq_embed_dim": embed,
    }


def of_shapes(shapes: Mapping[str, Shape], betas: tuple[float, float] | None) -> Layout:
    """The hyperparameters that a CompVis file shows in the shapes of its tensors.

    Heads and the side of the latents leave no trace: they are known for published models only, and
    None and 0 for others.

    Args:
        shapes: of the tensors, by CompVis name; the UNet's in ``model.diffusion_model.``.
        betas: first and last, where the file has them; those of the published models else.

    Raises:
        SolverBenchError: where the tensors are not those of a latent diffusion model.
    """
    try:
        unet, context, side = _unet_of(
            {k[len(RAW) :]: s for k, s in shapes.items() if k.startswith(RAW)}
        )
        stage = _stage_of(
            {k[len(STAGE) :]: s for k, s in shapes.items() if k.startswith(STAGE)}, side
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise SolverBenchError(
            "the sizes of the network cannot be told from its tensors; give config=PATH, the YAML "
            "file that belongs to the checkpoint"
        ) from error
    rows = shapes.get(CLASSES, (0, 0))
    num_rows, width = rows if len(rows) == 2 and context else (0, 0)
    return Layout(unet, stage, num_rows, width, *(betas or (0.0015, 0.0195)), 1.0)


def _unet_of(shapes: dict[str, Shape]) -> tuple[dict[str, Any], int, int]:
    """Keywords, width of the context (0 for none), side of the latents (0 for unknown)."""
    width, channels = shapes["input_blocks.0.0.weight"][:2]
    num = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks."))
    if num > MOST_INPUTS:
        raise ValueError("too many input blocks")
    downs = [i for i in range(num) if f"input_blocks.{i}.0.op.weight" in shapes]
    num_blocks = (downs[0] if downs else num) - 1
    firsts = range(1, num, num_blocks + 1)
    widths = [shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in firsts]
    attends = [any(key.startswith(f"input_blocks.{i}.1.") for key in shapes) for i in firsts]
    inner = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    context = shapes[inner][1] if inner in shapes else 0
    known = (width, tuple(w // width for w in widths), context)
    heads, side = PUBLISHED.get(known, (None, 0))
    sizes = channels, shapes["out.2.weight"][0], side
    return unet_keywords(sizes, widths, attends, num_blocks, heads, context or None), context, side


def _stage_of(shapes: dict[str, Shape], side: int) -> dict[str, Any]:
    num = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down."))
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(num)]
    blocks = sum(
        bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", k)) for k in shapes
    )
    z, embed = shapes["post_quant_conv.weight"][:2]
    codes = shapes.get("quantize.embedding.weight")
    return stage_keywords(
        z, embed, codes[0] if codes else None, widths, blocks, side * 2 ** (num - 1)
    )


def unet_place(key: str, keywords: Mapping[str, Any]) -> Place:
    """Where a CompVis file keeps a tensor of the UNet, without the prefix.

    Args:
        key: name in the diffusers UNet.
        keywords: of that UNet.
    """
    stem, _, kind = key.rpartition(".")
    if stem in UNET:
        return Place(f"{UNET[stem]}.{kind}")
    where, _, rest = stem.partition(".")
    run = keywords["layers_per_block"] + 1
    if where == "mid_block":
        what, number, *inner = rest.split(".")
        block = f"middle_block.{1 if what == 'attentions' else 2 * int(number)}"
        return _inside(block, what, ".".join(inner), kind)
    level, what, number, *inner = rest.split(".")
    if what == "downsamplers":
        return Place(f"input_blocks.{(int(level) + 1) * run}.0.op.{kind}")
    if what == "upsamplers":
        after = 2 if "Attn" in keywords["up_block_types"][int(level)] else 1
        return Place(f"output_blocks.{int(level) * run + run - 1}.{after}.conv.{kind}")
    first = 1 if where == "down_blocks" else 0
    side = "input_blocks" if where == "down_blocks" else "output_blocks"
    block = f"{side}.{first + int(level) * run + int(number)}"
    return _inside(f"{block}.{int(what == 'attentions')}", what, ".".join(inner), kind)


def _inside(block: str, what: str, name: str, kind: str) -> Place:
    """A tensor of a residual block, of an attention block or of a spatial transformer."""
    if what == "resnets":
        return Place(f"{block}.{RESNET[name]}.{kind}")
    if name in QKV:
        return Place(f"{block}.qkv.{kind}", QKV[name])
    plain = {"group_norm": "norm", "to_out.0": "proj_out"}.get(name, name)
    return Place(f"{block}.{plain}.{kind}")


def stage_place(key: str, keywords: Mapping[str, Any]) -> Place:
    """Where a CompVis file keeps a tensor of the autoencoder, without the prefix.

    Args:
        key: name in the diffusers autoencoder.
        keywords: of that autoencoder.
    """
    last = len(keywords["block_out_channels"]) - 1
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{last - int(m[1])}", key)
    for pattern, name in STAGE_RULES:
        key = re.sub(pattern, name, key)
    return Place(key)

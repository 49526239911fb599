"""What to run, as data: one cell of a benchmark, validated before anything slow starts."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from solverbench.byte_sizes import num_bytes

Value = JsonValue
Whole = Annotated[int, Field(strict=True, ge=1)]  # strict: true is no number
Bytes = Annotated[int, BeforeValidator(num_bytes)]  # "2GB" becomes 2000000000

BENCHMARK_VERSION = (
    1  # raised when a metric, seeds or protocol change; versions never share a table
)
RESERVED = {"name", "backbone", "nfe", "setting"}  # never options of a plugin
NUM_SEEDS = 2**32  # generators read 32 bits of a seed
LATER = (  # fields of a fit that older records do not know
    "micro_batch",
    "max_memory",
    "pairs",
    "target_cache",
    "target_cache_dtype",
)
FIRST_EVALUATION_SEED = 50_000  # teacher sets use smaller seeds, evaluation these and larger ones


class Model(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Model):
    """A plugin and the options that differ from its defaults."""

    name: str
    options: dict[str, Value] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _own(cls, options: dict[str, Value]) -> dict[str, Value]:
        for key in RESERVED & options.keys():
            raise ValueError(f"{key} is no option; it has a place of its own")
        return options


class FitSpec(Model):
    """Budget and conventions of training a learnable solver.

    Attributes:
        iterations: optimiser steps.
        batch: teacher pairs a step.
        lr: learning rate of the method's main optimiser.
        lr_schedule: ``constant`` (the paper) or ``cosine`` to 0.
        distance: plugin that compares a sample with the teacher's.
        train_size: teacher pairs to train on, seeds 0 .. train_size - 1.
        validation_size: pairs to validate on, the last seeds below 50,000.
        validate_every: iterations between validations (also after the first and the last).
        ema_decay: largest decay of the weight average.
        ema_warmup: decay after update n is at most (1 + n) / (10 + n), as torch_ema has it.
        clip: global gradient norm.
        select: which weights a fit ends with: the ``last`` or those with the ``best`` validation;
            None leaves it to the method.
        memory: ``store`` keeps the activations of every call, ``recompute`` of one at a time, a
            number those of so many calls.
        micro_batch: pairs that go through the network at once; None takes the whole batch.
        max_memory: bytes, or text such as ``6GB``: a probe chooses ``memory`` and
            ``micro_batch``, the quickest that fit; None leaves both as they are.
        pairs: folder of an imported teacher set: training takes its first rows, validation its
            last; None makes the pairs from their seeds.
        target_cache: bytes, or text such as ``2GB``, beside the network for what a perceptual
            distance reads of the teacher; None computes that at every step.
        target_cache_dtype: how it is kept; ``bfloat16`` rounds it to 8 bits and takes half.

    Fields in ``LATER`` count in the hash only where they differ from their defaults.

    Source: gs-gas recipe of arXiv 2510.17699, appendix D; EMA warm-up as in the authors' code.
    """

    iterations: PositiveInt = 10_000
    batch: PositiveInt = 24
    lr: PositiveFloat = 1e-3
    lr_schedule: Literal["constant", "cosine"] = "constant"
    distance: str = "l2"
    train_size: PositiveInt = 1400
    validation_size: PositiveInt = 1000
    validate_every: PositiveInt = 500
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    ema_warmup: bool = True
    clip: PositiveFloat = 1.0
    select: Literal["last", "best"] | None = None
    memory: Literal["store", "recompute"] | Whole = "store"
    micro_batch: Whole | None = None
    max_memory: Bytes | None = None
    pairs: str | None = None
    target_cache: Bytes | None = None
    target_cache_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Value]:
        data: dict[str, Value] = handler(self)
        fields = FitSpec.model_fields
        return {k: v for k, v in data.items() if k not in LATER or v != fields[k].default}

    @model_validator(mode="after")
    def _check(self) -> "FitSpec":
        if self.train_size + self.validation_size > FIRST_EVALUATION_SEED:
            raise ValueError(
                f"train_size + validation_size is {self.train_size + self.validation_size}; "
                f"at most {FIRST_EVALUATION_SEED} seeds lie below those of evaluation"
            )
        if self.batch > self.train_size:
            raise ValueError(f"batch {self.batch} is larger than train_size {self.train_size}")
        chosen = self.memory != "store" or self.micro_batch is not None
        if self.max_memory is not None and chosen:
            raise ValueError("max_memory chooses memory and micro_batch itself; leave those out")
        if self.target_cache is None and self.target_cache_dtype != "float32":
            raise ValueError("target_cache_dtype is of no use without target_cache, say 2GB")
        return self


class NetworkSpec(Model):
    """How the network is run; the default is exact and reproduces the paper.

    Attributes:
        channels_last: memory format of its weights; rounding alone differs.
        cudnn_benchmark: cuDNN tries its algorithms and keeps the quickest; rounding alone differs.
        tf32: ten bits in products of convolutions and matrices, where the GPU can.
        autocast: type that its layers compute in; state and times keep theirs.
        compile: by ``torch.compile``, in blocks where it repeats some.
        cuda_graphs: passes without gradients are recorded once for each shape and replayed.

    Only what is switched on counts in the hash.
    """

    channels_last: bool = False
    cudnn_benchmark: bool = False
    tf32: bool = False
    autocast: Literal["bfloat16"] | None = None
    compile: bool = False
    cuda_graphs: bool = False

    @model_serializer(mode="wrap")
    def _switched_on(self, handler: SerializerFunctionWrapHandler) -> dict[str, Value]:
        data: dict[str, Value] = handler(self)
        return {key: value for key, value in data.items() if value}

    def __str__(self) -> str:
        """What is switched on, for people."""
        on = self.model_dump().items()
        return ", ".join(key if value is True else f"{key} {value}" for key, value in on) or "exact"


EXACT = NetworkSpec()
FAST = NetworkSpec(channels_last=True)  # --fast; its effect on the tables: docs/performance.md


class TeacherSpec(Model):
    """The many-step run that students imitate."""

    solver: Named
    nfe: PositiveInt


class EvaluationSpec(Model):
    """How a cell is measured; equal for all rows of a table.

    Attributes:
        num_images: samples, seeds first_seed .. first_seed + num_images - 1.
        first_seed: at least 50,000, so that no teacher pair is among them.
        batch: images sampled at once.
        metrics: metric plugins.
    """

    num_images: PositiveInt = 2000
    first_seed: int = Field(default=FIRST_EVALUATION_SEED, ge=FIRST_EVALUATION_SEED)
    batch: PositiveInt = 100
    metrics: tuple[str, ...] = Field(default=("fd",), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "EvaluationSpec":
        if self.first_seed + self.num_images > NUM_SEEDS:
            raise ValueError(f"seeds end at {NUM_SEEDS - 1}; lower first_seed or num_images")
        return self


class RunSpec(Model):
    """One cell: a solver with its options on a backbone at one NFE.

    Attributes:
        backbone: plugin and options.
        solver: plugin and options.
        schedule: optimiser that chooses the solver's times, None where its options do.
        nfe: network evaluations a sample.
        teacher: the reference run.
        evaluation: how it is measured.
        fit: training budget; None for a solver that learns nothing.
        network: how it is run, that of the teacher too; counts in the hash unless it is exact.
        seed: of training (initialisation, batches); evaluation seeds are in ``evaluation``.
        version: of the benchmark protocol.
    """

    backbone: Named
    solver: Named
    schedule: Named | None = None
    nfe: PositiveInt
    teacher: TeacherSpec
    evaluation: EvaluationSpec
    fit: FitSpec | None = None
    network: NetworkSpec = EXACT
    seed: int = Field(default=0, ge=0)
    version: int = BENCHMARK_VERSION

    @model_serializer(mode="wrap")
    def _without_exact(self, handler: SerializerFunctionWrapHandler) -> dict[str, Value]:
        data: dict[str, Value] = handler(self)
        return {key: value for key, value in data.items() if (key, value) != ("network", {})}

    def key(self) -> str:
        """Short hash of the canonical JSON: file name and cache key."""
        return digest(self)

    @property
    def is_teacher(self) -> bool:
        """Whether this cell is the teacher itself."""
        same = (self.solver, self.nfe) == (self.teacher.solver, self.teacher.nfe)
        return same and self.schedule is None


def digest(*parts: Model | str | int | Sequence[int]) -> str:
    """Twelve hexadecimal digits that name the given parts."""
    data = [p.model_dump(mode="json") if isinstance(p, Model) else p for p in parts]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

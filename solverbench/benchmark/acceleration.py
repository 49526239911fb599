"""The network at speed: memory format, autocast, TF32, cuDNN's choice, compilation, graphs.

All of it is put into the backbone's own network, below its hooks, so that every caller gets it and
the counter counts as before. ``accelerated`` is meant for a backbone that was loaded for it: what
the network is given stays until it is dropped. TF32 and cuDNN's choice belong to the process: each
call sets them for its device, exact ones too, and what runs there after it (losses, discriminators)
has them; extractors and metrics of neighbours switch TF32 off for themselves.

Backbones have options of their own that do some of this. ``channels_last`` is the same there.
``dtype`` of latent backbones stores the weights in the narrower type, which halves their memory;
autocast leaves them and narrows what each layer reads, sums and normalisations excepted.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from solverbench.backbones.base import Backbone
from solverbench.benchmark.graphs import CudaRecorder, Graphs, first_line
from solverbench.benchmark.spec import NetworkSpec, Value
from solverbench.errors import SolverBenchError

VERSIONS = 128  # of one class: places in the network, with and without gradients, batch sizes


def accelerated(backbone: Backbone, network: NetworkSpec) -> Backbone:
    """Put settings into a backbone's network.

    Args:
        backbone: freshly loaded, frozen; changed in place.
        network: what to switch on.

    Returns:
        The same backbone. Its evaluations keep the type of the state.

    Raises:
        SolverBenchError: where graphs are asked for and the backbone is not on a CUDA device.
    """
    if backbone.device.type == "cuda":
        set_precision(network)
    elif network.cuda_graphs:
        raise SolverBenchError(
            f"network.cuda_graphs needs a CUDA device; backbone {backbone.name} is on "
            f"{backbone.device}. Leave the setting out or give the backbone device=cuda"
        )
    module: Any = backbone.network
    if network.channels_last:
        place: Any = nn.Module.to  # the stubs of its overloads differ between versions
        place(module, memory_format=torch.channels_last)
    if network.autocast or network.compile:
        module.forward = Forward(module, network, backbone.device)
    if network.cuda_graphs:
        backbone.player = Graphs(backbone, CudaRecorder(backbone.device))
    return backbone


def set_precision(network: NetworkSpec) -> None:
    """TF32 and cuDNN's choice of algorithms, on or off for this process.

    PyTorch has TF32 on for convolutions unless it is told otherwise. These names and the newer
    ``fp32_precision`` set the same; after the newer one these cannot be read, which Inductor does.
    """
    torch.backends.cuda.matmul.allow_tf32 = network.tf32
    torch.backends.cudnn.allow_tf32 = network.tf32
    torch.backends.cudnn.benchmark = network.cudnn_benchmark


def facts_of(backbone: Backbone) -> dict[str, Value]:
    """What a record must say beyond its spec: what was compiled or recorded, or why nothing was."""
    forward, player = vars(backbone.network).get("forward"), backbone.player
    compiled = forward.facts if isinstance(forward, Forward) else {}
    return compiled | (player.facts if isinstance(player, Graphs) else {})


class Forward:
    """Stands in for the ``forward`` of a network.

    Args:
        network: its own ``forward`` does the work.
        spec: what is switched on.
        device: where it lives.

    Attributes:
        facts: for the record.
    """

    def __init__(self, network: nn.Module, spec: NetworkSpec, device: torch.device) -> None:
        self.plain = self.quick = network.forward
        self.device, self.narrow = device.type, spec.autocast is not None
        self.blocks = list(repeated(network))
        self.facts: dict[str, Value] = {}
        if spec.compile:
            self._compile()

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network gives for x (B, C, H, W); a tensor has the dtype of ``x``."""
        with self._autocast():
            made = self._run(x, *args, **kwargs)
        return made.to(x.dtype) if isinstance(made, Tensor) else made

    def _autocast(self) -> AbstractContextManager[Any]:
        """The same for a call without gradients and its repetition with them."""
        return torch.autocast(self.device, torch.bfloat16) if self.narrow else nullcontext()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if "network_compiled" not in self.facts:
            return self.plain(*args, **kwargs)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self.quick(*args, **kwargs)
        except TorchDynamoException as error:  # what the network itself raises, it raises again
            self._give_up(error)
            return self.plain(*args, **kwargs)

    def _compile(self) -> None:
        """Compile lazily: repeated blocks where there are any, else the whole.

        Each batch size anew: with symbolic sizes Inductor of torch 2.13 fails on gradients.
        Backward passes are compiled with the forward ones, where a failure is caught.
        """
        from torch._dynamo import config
        from torch._functorch import config as passes

        config.recompile_limit = max(config.recompile_limit, VERSIONS)
        if hasattr(passes, "force_non_lazy_backward_lowering"):
            passes.force_non_lazy_backward_lowering = True
        try:
            for block in self.blocks:
                block.compile(dynamic=False)
            if not self.blocks:
                self.quick = torch.compile(self.plain, dynamic=False)
        except RuntimeError as error:  # where this Python or system has no compiler at all
            self._give_up(error)
            return
        kinds = Counter(type(block).__name__ for block in self.blocks)
        named = ", ".join(f"{num} {kind}" for kind, num in kinds.items())
        self.facts["network_compiled"] = named or "whole network"

    def _give_up(self, error: BaseException) -> None:
        """Go on without a compiler, and say so."""
        for block in self.blocks:
            block._compiled_call_impl = None
        self.quick = self.plain
        self.facts.pop("network_compiled", None)
        why = first_line(error)
        self.facts["network_not_compiled"] = why
        warnings.warn(f"the network runs uncompiled; {why}", RuntimeWarning, stacklevel=2)


def repeated(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules whose class, one that is not PyTorch's own, occurs more than once."""
    counts = Counter(type(module) for module in network.modules())

    def outermost(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            kind = type(child)
            if counts[kind] > 1 and not kind.__module__.startswith("torch."):
                yield child
            else:
                yield from outermost(child)

    return outermost(network)

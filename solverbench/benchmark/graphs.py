"""Whole passes of sampling as CUDA graphs: recorded once for each shape, then replayed.

A pass of few calls on a small batch waits for its launches, some thousand of them from Python; a
replay is one launch. The arithmetic is that of ``replay.play``, kernel by kernel.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone, Condition, Count
from solverbench.benchmark.spec import Value
from solverbench.solvers.replay import Plan, moved, play, played

MOST = 4  # graphs held at once; each has its activations


class Recorder(Protocol):
    """Makes graphs on some kind of device."""

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work as a recording would, so that all that is set up lazily is there."""
        ...

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """The tensor that the work fills each time the second one is called.

        Raises:
            RuntimeError: where the work cannot be recorded.
        """
        ...


class CudaRecorder:
    """Graphs of a CUDA device, recorded on a stream of their own.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        made: Any = torch.cuda.Stream  # without annotations
        self.device, self.stream = device, made(device)

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Work on the stream of recordings, in its turn with the current one."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            done = work()
        current.wait_stream(self.stream)
        done.record_stream(current)
        return done

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """A graph; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            final = work()
        return final, graph.replay


@dataclass(frozen=True, eq=False)
class Recorded:
    """A pass that can be repeated.

    Attributes:
        held: its arguments, where it reads them: coefficients, times, noise, condition.
        final: its samples, overwritten by each repetition.
        repeat: fills ``final``.
        use: what it counts.
    """

    held: tuple[Tensor, ...]
    final: Tensor
    repeat: Callable[[], None]
    use: Count


class Graphs:
    """A ``play`` that records. A backbone's ``player``.

    The first pass of a shape is played as it is, the second recorded. Where that fails, passes are
    played on, and the reason is kept.

    Args:
        backbone: whose passes; its counts go on with every replay.
        recorder: makes the graphs.
        most: graphs held at once; the one that was longest unused gives way.

    Attributes:
        facts: for the record.
    """

    def __init__(self, backbone: Backbone, recorder: Recorder, most: int = MOST) -> None:
        self.backbone, self.recorder, self.most = backbone, recorder, most
        self.kept: OrderedDict[tuple[Any, ...], Recorded | None] = OrderedDict()
        self.facts: dict[str, Value] = {}
        self.refused = False

    def __call__(self, plan: Plan, A: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
        """Samples (B, C, H, W), as ``replay.play`` makes them, in memory of their own."""
        if self.refused or plan.on_call is not None:  # a graph tells nobody of its calls
            return play(plan, A, tau, noise)
        condition = None if plan.condition is None else self.backbone.prepared(plan.condition)
        plan = replace(plan, condition=condition)
        start = (*moved(A.detach(), tau.detach(), noise), noise.detach())
        given = (*start, *_tensors(condition).values())
        key = (plan.autocast, *((t.shape, t.dtype) for t in given))
        if key not in self.kept:
            self._keep(key, None)
            return self.recorder.warm(lambda: play(plan, A, tau, noise))
        self.kept.move_to_end(key)
        known = self.kept[key]
        if known is None:
            known = self._recorded(plan, given)
            if known is None:
                return play(plan, A, tau, noise)
            self._keep(key, known)
        else:
            self.backbone.count_again(known.use)
        for place, value in zip(known.held, given, strict=True):
            place.copy_(value)
        known.repeat()
        return known.final.clone()

    def _keep(self, key: tuple[Any, ...], known: Recorded | None) -> None:
        self.kept[key] = known
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)

    def _recorded(self, plan: Plan, given: tuple[Tensor, ...]) -> Recorded | None:
        """Record a pass on copies of its arguments; None where that fails."""
        held = tuple(value.clone() for value in given)
        rows, times, noise, *condition = held
        own = replace(plan, condition=_refilled(plan.condition, condition))
        with self.backbone.counting() as use:
            try:
                final, repeat = self.recorder.record(lambda: played(own, rows, times, noise))
            except RuntimeError as error:
                self.backbone.count_again(use, times=-1)
                self._give_up(error)
                return None
        self.facts["network_graphs"] = True
        return Recorded(held, final, repeat, use)

    def _give_up(self, error: RuntimeError) -> None:
        """Play on, and say so."""
        self.refused = True
        self.kept.clear()
        self.facts.pop("network_graphs", None)
        why = first_line(error)
        self.facts["network_not_graphed"] = why
        warnings.warn(f"sampling runs without graphs; {why}", RuntimeWarning, stacklevel=3)


def first_line(error: BaseException) -> str:
    """Kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"


def _tensors(condition: Condition | None) -> dict[str, Tensor]:
    """What a condition holds, by the names of its fields."""
    if condition is None:
        return {}
    held = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _refilled(condition: Condition | None, tensors: Sequence[Tensor]) -> Condition | None:
    """The condition with other tensors, in the order of ``_tensors``."""
    if condition is None:
        return None
    return replace(condition, **dict(zip(_tensors(condition), tensors, strict=True)))

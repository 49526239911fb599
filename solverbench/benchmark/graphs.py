"""Whole passes of sampling as CUDA graphs: recorded once for each shape, then replayed.

A pass of few calls on a small batch waits for its launches, some thousand of them from Python; a
replay is one launch. The arithmetic is that of ``replay.play``, kernel by kernel. What a recording
reads of its backbone (weights, guidance) must stay as it was.
"""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone, Condition, Count
from solverbench.benchmark.spec import Value
from solverbench.solvers.replay import Plan, moved, play, played

MOST = 4  # graphs held at once; each has its activations


class Recording(NamedTuple):
    """Work that can be repeated.

    Attributes:
        final: what it gives, overwritten by each repetition.
        repeat: fills ``final``.
        num_bytes: what it holds on the device from now on.
    """

    final: Tensor
    repeat: Callable[[], None]
    num_bytes: int


class Recorder(Protocol):
    """Makes graphs on some kind of device."""

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work as a recording would, so that all that is set up lazily is there."""
        ...

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record without doing it.

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
        self.failed: list[torch.cuda.CUDAGraph] = []  # the allocator still knows of these

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Work on the stream of recordings, in its turn with the current one."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            done = work()
        current.wait_stream(self.stream)
        done.record_stream(current)
        return done

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """A graph; other threads may use the device meanwhile.

        A recording that fails leaves the current stream and the allocator as they were, which
        ``torch.cuda.graph`` alone does not.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self.device)
        how: dict[str, Any] = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self.device), torch.cuda.stream(current):
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self.device)
            try:
                with torch.cuda.graph(graph, pool=pool, **how):
                    final = work()
            except RuntimeError:
                self.failed.append(graph)
                let_go: Any = getattr(torch._C, "_cuda_endAllocateToPool", None)
                with suppress(RuntimeError):
                    if let_go:
                        let_go(self.stream.device_index, pool)
                raise
            held = torch.cuda.memory_reserved(self.device) - before
        return Recording(final, graph.replay, held)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A pass that can be repeated.

    Attributes:
        held: its arguments, where it reads them: coefficients, times, noise, condition.
        recording: gives its samples.
        use: what it counts.
    """

    held: tuple[Tensor, ...]
    recording: Recording
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
        num_bytes: the most that graphs have held at once; a replay needs little beside.
    """

    def __init__(self, backbone: Backbone, recorder: Recorder, most: int = MOST) -> None:
        self.backbone: Backbone = weakref.proxy(backbone)  # which holds this
        self.recorder, self.most = recorder, most
        self.kept: OrderedDict[tuple[Any, ...], Recorded | None] = OrderedDict()
        self.facts: dict[str, Value] = {}
        self.refused, self.num_bytes = False, 0

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
            done = self.recorder.warm(lambda: played(plan, *start))
            self._keep(key, None)
            return done
        self.kept.move_to_end(key)
        known = self.kept[key]
        if known is None:
            known = self._recorded(plan, given)
            if known is None:
                return played(plan, *start)
            self._keep(key, known)
        else:
            self.backbone.count_again(known.use)
        for place, value in zip(known.held, given, strict=True):
            place.copy_(value)
        known.recording.repeat()
        return known.recording.final.clone()

    def _keep(self, key: tuple[Any, ...], known: Recorded | None) -> None:
        self.kept[key] = known
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        sizes = [one.recording.num_bytes for one in self.kept.values() if one]
        if sizes:
            self.num_bytes = max(self.num_bytes, sum(sizes))
            self.facts["network_graph_bytes"] = self.num_bytes

    def _recorded(self, plan: Plan, given: tuple[Tensor, ...]) -> Recorded | None:
        """Record a pass on copies of its arguments; None where that fails."""
        with self.backbone.counting() as use:
            try:
                held = tuple(value.clone() for value in given)
                rows, times, noise, *condition = held
                own = replace(plan, condition=_refilled(plan.condition, condition))
                recording = self.recorder.record(lambda: played(own, rows, times, noise))
            except RuntimeError as error:
                self.backbone.count_again(use, times=-1)
                cause = error.__context__ or error  # the end of a recording fails for another
                if isinstance(cause, torch.OutOfMemoryError):
                    self.kept.clear()  # room for this pass; a shape that fits is recorded again
                else:
                    self._give_up(cause)
                return None
        return Recorded(held, recording, use)

    def _give_up(self, error: BaseException) -> None:
        """Play on, and say so."""
        self.refused = True
        self.kept.clear()
        self.facts.pop("network_graph_bytes", None)
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

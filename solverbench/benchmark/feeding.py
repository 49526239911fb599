"""Batches of a teacher set on their way to the device, the next one ahead of its turn."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from solverbench.backbones.base import Condition
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import digest
from solverbench.solvers.fitting import Batch
from solverbench.stages import stage


class _Loaded(NamedTuple):
    """A batch on the device, once ``ready`` has passed there."""

    noise: Tensor
    target: Tensor
    condition: Condition | None
    ready: torch.cuda.Event | None


class Feed:
    """Gives batches by their rows; rows that are told in advance are read while others are used.

    On CUDA a thread reads them, pins them and copies them on a stream of its own. On the CPU
    nothing is read ahead: a thread would take the core that it wants to save. Bits are those of
    ``samples.noise[rows].to(device)`` either way, and nothing is drawn here.

    Args:
        samples: noise, states and conditions.
        device: where batches are wanted.
        ahead: whether a thread reads ahead; by default on CUDA.
    """

    def __init__(self, samples: Samples, device: torch.device, ahead: bool | None = None) -> None:
        self.samples, self.device = samples, device
        self.stream = _stream(device) if device.type == "cuda" else None
        if self.stream is not None:  # the conditions were put there by the stream of now
            self.stream.wait_stream(torch.cuda.current_stream(device))
        told = device.type == "cuda" if ahead is None else ahead
        self.thread = ThreadPoolExecutor(1, "feed") if told else None
        self.next: tuple[Tensor, Future[_Loaded]] | None = None

    def batch(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        """The batch of some rows.

        Args:
            rows: their numbers, (B,), int64, on the host.
            then: the rows that will be asked for next; None where that is not known, and what was
                read ahead is kept for its turn.

        Raises:
            SolverBenchError: for a file of the set that is gone or changed.
        """
        with stage("waiting"):
            noise, target, condition, ready = self._taken(rows)
            if ready is not None:
                self._hand_over(ready, noise, target, condition)
        if then is not None and self.thread is not None:
            self.next = then, self.thread.submit(self._load, then)
        return Batch(noise, target, condition, rows)

    def in_order(self, size: int) -> Iterator[Batch]:
        """All rows, ``size`` at a time."""
        parts = torch.split(torch.arange(len(self.samples.states)), size)
        for rows, then in zip(parts, [*parts[1:], None], strict=True):
            yield self.batch(rows, then)

    def _taken(self, rows: Tensor) -> _Loaded:
        """What was read ahead, if it is these rows; else read now."""
        if self.next is None or not torch.equal(self.next[0], rows):
            return self._load(rows)
        found, self.next = self.next[1].result(), None
        return found

    def _load(self, rows: Tensor) -> _Loaded:
        samples = self.samples
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            noise, target = self._moved(samples.noise[rows]), self._moved(samples.states[rows])
            condition = samples.condition[rows] if samples.condition is not None else None
            ready = self.stream.record_event() if self.stream is not None else None
        return _Loaded(noise, target, condition, ready)

    def _moved(self, part: Tensor) -> Tensor:
        """On the device; the copy of a pinned part does not wait, and holds the part until then."""
        if self.stream is None or part.is_cuda:
            return part.to(self.device)
        return part.pin_memory().to(self.device, non_blocking=True)

    def _hand_over(
        self, ready: torch.cuda.Event, noise: Tensor, target: Tensor, condition: Condition | None
    ) -> None:
        """Let the stream of now wait for a batch, and its memory for the stream of now."""
        user = torch.cuda.current_stream(self.device)
        user.wait_event(ready)
        labels = [condition.labels] if condition is not None else []
        for tensor in (noise, target, *labels):
            if tensor.is_cuda:
                tensor.record_stream(user)


@lru_cache(maxsize=2)  # an epoch and the next: that of a large set takes as long as a step
def shuffled(num: int, seed: int, epoch: int) -> Tensor:
    """The rows 0 .. num - 1 in the order of an epoch, (num,), int64; not to be written to."""
    order = int(digest(seed, epoch)[:8], 16)  # generators read 32 bits of a seed
    return torch.randperm(num, generator=torch.Generator().manual_seed(order))


def _stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream

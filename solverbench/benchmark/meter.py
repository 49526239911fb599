"""Peak memory and wall clock, measured around the work and never declared by it."""

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass
class Peak:
    """Highest memory use inside a block.

    Attributes:
        measure: the mark as it stands, less what was in use at the start.
        final: the mark at the end of the block.
    """

    measure: Callable[[], int]
    final: int | None = None

    @property
    def bytes(self) -> int:
        """Above what was in use at the start, so far; CUDA: allocated, CPU: resident."""
        return max(0, self.measure() if self.final is None else self.final)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of a block; read ``.bytes`` in it or after it.

    On CUDA it is what PyTorch allocated. On Linux it is the resident size of this process, whose
    high-water mark is reset first; elsewhere it stays 0.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        peak = Peak(lambda: torch.cuda.max_memory_allocated(device) - before)
    else:
        resident = _reset_resident()
        peak = Peak(lambda: _resident("VmHWM") - resident)
    yield peak
    _wait(device)
    peak.final = peak.measure()


def _reset_resident() -> int:
    """Give freed memory back, reset the high-water mark, and say what is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _resident("VmHWM")
    return _resident("VmRSS")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step instead of asking the kernel for it anew.

    A training step frees and takes the activations of a network; giving them back costs some
    50,000 page faults a step. ``peak_memory`` still gives them back first. Lasts for the process.
    Nothing happens where the environment sets ``MALLOC_...`` itself, nor without glibc.
    """
    if any(key.startswith("MALLOC_") for key in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, -1)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes


def _resident(key: str) -> int:
    if not STATUS.exists():
        return 0
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(key))
    return int(line.split()[1]) * 1024


@contextmanager
def stopwatch(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Append the wall clock of a block, with the device waited for at both ends."""
    _wait(device)
    start = time.perf_counter()
    yield
    _wait(device)
    seconds.append(time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

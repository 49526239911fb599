"""One step under PyTorch's profiler, and what each stage took of it."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from solverbench.benchmark.meter import stopwatch
from solverbench.stages import PREFIX, STAGES

STEP = f"{PREFIX}step"
OTHER = "other"
SILENT = "6"  # level above which the profiler's library does not report its own start and stop
Range = tuple[float, float, str]  # start and end in microseconds, name of a stage


@dataclass
class Stage:
    """What a stage took of one step.

    Attributes:
        name: one of ``STAGES``, or ``other``: what no stage covers.
        seconds: while it ran and none inside it did; they sum up to the step's.
        entered: how often it was.
        kept_bytes: of tensors, allocated less freed while it ran; they sum up to what the step
            leaves. Activations kept for the backward pass count for the stage that made them, and
            as freed for the one that lets go of them.
        peak_bytes: most bytes of tensors while it ran, above those before the step; the largest
            is the step's peak.
    """

    name: str
    seconds: float = 0.0
    entered: int = 0
    kept_bytes: int = 0
    peak_bytes: int = 0


def recorded(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The Chrome trace of one run of ``work``, allocations included.

    Another run goes before it: the profiler sees a block freed only where it saw it allocated, and
    a step frees what the last one left, such as gradients.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds, profile_memory=True) as profiler:
        with stopwatch(device, []):
            work()
        with record_function(STEP), stopwatch(device, []):
            work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text())
    (start,) = (e["ts"] for e in trace["traceEvents"] if _is_range(e) and e["name"] == STEP)
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("ts", start) >= start]
    return {key: value for key, value in trace.items() if key not in ("traceName", "host_name")}


def _is_range(event: dict[str, Any]) -> bool:
    """Whether an event is a stage or the step."""
    named = str(event.get("name")).startswith(PREFIX)
    return named and event.get("cat") == "user_annotation"


def stages_of(trace: dict[str, Any], device: str = "cpu") -> list[Stage]:
    """The stages of the one step that a trace holds; see ``Stage`` for what is counted.

    The innermost range that is open has the moment, whatever its thread: autograd runs ranges of
    the backward pass in a thread of its own on a GPU while the caller waits.

    Args:
        trace: from ``recorded``.
        device: whose memory counts, ``cpu`` or ``cuda``.
    """
    events = trace["traceEvents"]
    ranges = sorted(_ranges(events), key=lambda r: (r[0], -r[1]))
    rows = {name: Stage(name) for name in (*STAGES, OTHER)}
    for _, _, name in ranges:
        rows[name].entered += 1
    changes, live = _changes(events, device), 0
    change = next(changes, None)
    for start, end, name in _segments(ranges):
        row = rows[name]
        row.seconds += (end - start) * 1e-6
        row.peak_bytes = max(row.peak_bytes, live)
        while change is not None and change[0] < end:
            live += change[1]
            row.kept_bytes += change[1]
            row.peak_bytes = max(row.peak_bytes, live)
            change = next(changes, None)
    return [row for row in rows.values() if row.entered]


def _ranges(events: list[dict[str, Any]]) -> Iterator[Range]:
    """Ranges of stages, and the step as ``other``."""
    for event in events:
        if _is_range(event) and event["dur"] > 0:
            name = OTHER if event["name"] == STEP else event["name"].removeprefix(PREFIX)
            yield event["ts"], event["ts"] + event["dur"], name


def _segments(ranges: list[Range]) -> Iterator[Range]:
    """The time line cut where the innermost range changes; ``ranges`` in the order of starts."""
    points = [(start, 1, k) for k, (start, _, _) in enumerate(ranges)]
    points += [(end, 0, k) for k, (_, end, _) in enumerate(ranges)]
    opened, before = list[int](), 0.0
    for now, opens, k in sorted(points):
        if opened and now > before:
            yield before, now, ranges[opened[-1]][2]
        if opens:
            opened.append(k)
        else:
            opened.remove(k)
        before = now


def _changes(events: list[dict[str, Any]], device: str) -> Iterator[tuple[float, int]]:
    """Moments and bytes of allocations (above 0) and releases (below), in order."""
    kind = 0 if device == "cpu" else 1  # c10::DeviceType
    found = [e for e in events if e.get("name") == "[memory]"]
    own = [e for e in found if e["args"]["Device Type"] == kind]
    yield from sorted((e["ts"], e["args"]["Bytes"]) for e in own)

"""Where a record comes from: versions, device, commit, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from solverbench.benchmark.results import Provenance


def provenance(
    device: torch.device, weights: str, reference: str, jobs: int = 1, plugin: str = ""
) -> Provenance:
    """The provenance of work done now in this process.

    Args:
        device: that ran the network.
        weights: hash of the backbone's weights.
        reference: hash of the reference statistics.
        jobs: processes that ran side by side.
        plugin: distribution that the solver came from.
    """
    return Provenance(
        solverbench=version("solverbench"),
        python=platform.python_version(),
        torch=torch.__version__,
        device=device_name(device),
        threads=torch.get_num_threads(),
        jobs=jobs,
        plugin=plugin,
        commit=commit(),
        weights_sha256=weights,
        reference_sha256=reference,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [row.partition(":")[2].strip() for row in lines if row.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def commit() -> str:
    """Commit of the source tree, with ``+`` where it was changed; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if not git("ls-files", "--error-unmatch", str(Path(__file__).name)):
        return ""  # installed somewhere inside a foreign repository, or in none
    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")

"""A teacher set of any size needs the same memory, in training and in measuring."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solverbench.benchmark.rows import IN_MEMORY
from tests.benchmark.teacher_store import STATUS, make

MOST = 100e6  # above the process that has the network: 65 MB were seen, 20 of them validation pairs
SPREAD = 35e6  # between two runs: the allocator keeps more or less of what the steps freed


@pytest.mark.skipif(not STATUS.exists(), reason="asks Linux for resident memory")
def test_memory_does_not_grow_with_the_teacher_set(tmp_path: Path) -> None:
    """168 MB and 671 MB; a reader that kept its pages would end with the size of the set.

    Links stand for most of the shards: each is mapped by itself, so its pages count again.
    """
    root = Path(__file__).parents[2]
    found = []
    for num in (10, 40):
        folder = tmp_path / str(num)
        make(folder, num, distinct=2)
        command = [sys.executable, "-m", "tests.benchmark.teacher_store", str(folder)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    small, large = found
    assert small["bytes"] > IN_MEMORY
    assert large["bytes"] == 4 * small["bytes"]
    assert max(small["peak"], large["peak"]) < MOST
    assert abs(large["peak"] - small["peak"]) < SPREAD
    assert max(large["RssAnon"], large["RssFile"]) < MOST

"""Records by the key of their cell, wherever they lie, with what lies beside them."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from solverbench.benchmark.results import Result
from solverbench.benchmark.store import (
    RECORD_NAME,
    Influence,
    StoredInfluences,
    influence_path,
    read_record,
)
from solverbench.leaderboards.committed import COMMUNITY

COMMITTED = Path(__file__).with_name("records")
BESIDE = (".safetensors", ".fit.jsonl")  # solver and training curve, where they were kept


class Shelf:
    """Records of several folders; of two of one cell that of the earlier folder counts.

    Within a folder the newer one does, as on the leaderboards. What others sent is left out: its
    metrics were not measured here, and tables of experiments do not tell.

    Args:
        folders: searched with all below them; one that does not exist is empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._read = lru_cache(maxsize=None)(read_record)
        self._influences = lru_cache(maxsize=None)(StoredInfluences)

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Record files by the key in their name."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            own: dict[str, list[Path]] = {}
            for path in sorted(folder.rglob("nfe*.json")):
                sent = path.relative_to(folder).parts[0] == COMMUNITY
                if RECORD_NAME.fullmatch(path.name) and not sent:
                    own.setdefault(path.stem.partition("-")[2], []).append(path)
            for key, paths in own.items():
                found.setdefault(key, self._newest(paths))
        return found

    def _newest(self, paths: Sequence[Path]) -> Path:
        """One is not read."""
        if len(paths) == 1:
            return paths[0]
        return max(paths, key=lambda path: self._read(path).provenance.created)

    def get(self, key: str) -> Result | None:
        """The record of a cell; None where there is none.

        Raises:
            SolverBenchError: where it cannot be read.
        """
        path = self.paths.get(key)
        return self._read(path) if path else None

    def is_ok(self, key: str) -> bool:
        """Whether a cell has a record that went well."""
        result = self.get(key)
        return result is not None and result.status == "ok"

    def beside(self, key: str) -> list[Path]:
        """The record of a cell and the files beside it that exist."""
        path = self.paths.get(key)
        if path is None:
            return []
        others = [*(path.with_suffix(end) for end in BESIDE), influence_path(path)]
        return [path, *(other for other in others if other.exists())]

    def tableau(self, key: str) -> Path | None:
        """The solver file of a cell; None where it was not kept."""
        path = self.paths.get(key)
        file = path.with_suffix(".safetensors") if path else None
        return file if file and file.exists() else None

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Iterations and validation distances of a fit; empty where they were not kept."""
        path = self.paths.get(key)
        file = path.with_suffix(".fit.jsonl") if path else None
        if file is None or not file.exists():
            return []
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [(r["iteration"], r["validation"]) for r in rows if "validation" in r]

    def influences(self, result: Result, metric: str) -> Influence | None:
        """What each image adds to a metric, for paired tests; None where it was not kept."""
        path = self.paths.get(result.spec.key())
        return self._influences(path)(result, metric) if path else None

"""A solver from a file: what was trained elsewhere, sampled as it stands."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from solverbench.files import sha256_of
from solverbench.schedule import TimeGrid
from solverbench.solvers.base import Network, Setting, Solver, State, combined
from solverbench.solvers.tableau import Tableau


class Stored(Solver):
    """The table of a tableau file, unchanged: for solvers trained on another network.

    The record's options say which file by its checksum, and on which backbone it was trained.
    """

    source = "a tableau file; its own source is in its metadata"
    title = "stored"

    def __init__(self, setting: Setting, *, tableau: str) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output; must be those that the file was made for.
            tableau: path of a file that a run left beside its record.

        Raises:
            SolverBenchError: for a missing, damaged or foreign file.
            ValueError: where it was made for another NFE, frame, output or range of times.
        """
        table, schedule = Tableau.load(tableau).detach(), setting.noise_schedule
        wanted = {
            "nfe": setting.nfe,
            "frame": schedule.facts(),
            "output": setting.output,
            "t_max": schedule.t_max,
        }
        for key, value in wanted.items():
            if table.meta.get(key) != value:
                raise ValueError(f"{tableau} was made for {key} {table.meta.get(key)}, not {value}")
        super().__init__(setting, t_min=table.meta["t_min"])
        trained = table.meta.get("trained", {})
        origin = trained.get("backbone", {}).get("name", "unknown")
        self.title = f"{table.meta['title']} (stored, of {origin})"
        self.options |= {"sha256": sha256_of(Path(tableau)), "trained_on": origin}
        self.options |= {"of": table.meta["solver"], "of_options": table.meta["options"]}
        self._table = table

    def grid(self) -> TimeGrid:
        """The nodes of the file."""
        return self.setting.noise_schedule.grid(self._table.nodes)

    def tableau(self) -> Tableau:
        """The numbers of the file, bit for bit, under this solver's own name."""
        meta = self._table.meta
        kept = {
            key: meta[key] for key in ("nfe", "frame", "t_max", "t_min", "output", "conversion")
        }
        own = {"solver": type(self).__name__, "title": self.title, "source": meta["source"]}
        return replace(self._table, meta=own | {"options": self.options} | kept)

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Combine noise and raw outputs row by row."""
        states = [x / self.setting.noise_schedule.prior_std]
        for k in range(self.setting.nfe):
            time = self._table.tau[k]
            states.append(network(self._row(k, states), time, time).raw)
        return self._row(self.setting.nfe, states)

    def _row(self, j: int, states: list[Tensor]) -> State:
        return combined(self._table.A[j], states)

"""One cell from its spec to its record, in stages that a killed run finds again."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark import outcome
from solverbench.benchmark.acceleration import accelerated, facts_of
from solverbench.benchmark.features import keeps_images, ready, reference_of, sampled_features
from solverbench.benchmark.fit_memory import settled
from solverbench.benchmark.importing.pairs import check_set, lesson_pairs, set_sha256
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.metrics.base import Metric
from solverbench.benchmark.provenance import provenance
from solverbench.benchmark.results import Cost, Measurement, Result
from solverbench.benchmark.sampling import Samples, sample_seeds
from solverbench.benchmark.scheduling import (
    check_times,
    schedule_facts,
    schedule_title,
    solver_of,
    times_of,
)
from solverbench.benchmark.spec import FIRST_EVALUATION_SEED, Named, NetworkSpec, RunSpec, digest
from solverbench.benchmark.store import (
    check_writable,
    influence_path,
    read_record,
    record_path,
    write_record,
)
from solverbench.benchmark.training import Fit, Lesson, check_fit
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of, write_bytes
from solverbench.images import Extractor, Features, Reference
from solverbench.published_discriminator import sha256_here
from solverbench.solvers.base import LearnableSolver, Solver
from solverbench.solvers.tableau import Tableau, check_match

Report = Callable[[str, int, int], None]  # stage, done, total


class Run:
    """A cell, bound to a folder.

    Args:
        spec: what to run.
        root: folder of records; scratch files live beside them and go when the cell is done.
        report: told of progress.
        jobs: processes that run side by side; for the record.
    """

    def __init__(
        self,
        spec: RunSpec,
        root: Path,
        report: Report = lambda stage, done, total: None,
        jobs: int = 1,
    ) -> None:
        self.spec, self.root, self.report, self.jobs = spec, root, report, jobs
        self.path = record_path(root, spec)
        self.work = self.path.with_suffix(".work")

    @property
    def tableau_path(self) -> Path:
        """Where the solver of this cell is stored."""
        return self.path.with_suffix(".safetensors")

    def done(self) -> Result | None:
        """The record of a former run that went well, if it still stands.

        It falls when the weights, the reference or the formulas of the solver have changed since.
        """
        if not self.path.exists():
            return None
        result = read_record(self.path)
        return result if result.status == "ok" and self._stands(result) else None

    def _stands(self, result: Result) -> bool:
        backbone, solver = self._load()
        reference = extractor_of(backbone).reference().sha256
        found = (result.provenance.weights_sha256, result.provenance.reference_sha256)
        if found != (backbone.weights_sha256, reference):
            return False
        judge = result.conventions.get("discriminator_sha256")
        if judge is not None and judge != sha256_of(backbone.discriminator):
            return False
        named = str(self.spec.solver.options.get("discriminator", ""))
        judge = result.conventions.get("discriminator_file_sha256")
        if judge is not None and sha256_here(named) not in (judge, ""):
            return False
        pairs = set_sha256(self.spec.fit.pairs if self.spec.fit else None)
        if pairs and pairs != result.conventions.get("pairs_sha256"):
            return False
        if not self.tableau_path.exists():
            return True  # a record that was copied alone
        stored = Tableau.load(self.tableau_path)
        before = stored.meta.get("untrained") or stored.A.tolist()
        times = stored.meta.get("times")
        now = traced(solver_of(self.spec, backbone, tuple(times)) if times else solver)
        return (
            now is not None
            and now.A.shape == stored.A.shape
            and torch.allclose(  # processors round differently, other formulas differ by more
                now.A, torch.tensor(before, dtype=torch.float64), rtol=1e-6, atol=1e-9
            )
        )

    def check(self) -> None:
        """Load everything that can be wrong, before anything slow starts.

        Raises:
            SolverBenchError: says what is wrong.
        """
        backbone, solver = self._load()
        evaluation, extractor = self.spec.evaluation, extractor_of(backbone)
        for name in evaluation.metrics:
            registry.metrics.get(name)().prepare()
        if evaluation.num_images < 2:
            raise SolverBenchError(
                f"num_images is {evaluation.num_images}; metrics need at least 2"
            )
        extractor.reference()
        if self.spec.fit is not None:
            assert isinstance(solver, LearnableSolver)
            distance = registry.distances.get(self.spec.fit.distance)(backbone, extractor)
            check_fit(self.spec.fit, backbone, solver, distance)
            check_set(self.spec.fit, backbone)
        check_times(self.spec, backbone)
        noise = backbone.noise([evaluation.first_seed])
        check_match(backbone, self._teacher_tableau(backbone), noise)
        tableau = traced(solver)
        if tableau is not None:
            check_match(backbone, tableau, noise)

    def execute(self) -> Result:
        """Do what is missing and return the record; a failure is a record too."""
        known = self.done()
        if known is not None:
            shutil.rmtree(self.work, ignore_errors=True)  # of a run killed at the very end
            return known
        self.check()
        try:
            result = self._measured()
        except Exception as error:
            result = outcome.failed(self.spec, outcome.reason_of(error))
            write_record(self.root, result)
            if not isinstance(error, SolverBenchError):
                raise
            return result
        write_record(self.root, result)
        shutil.rmtree(self.work, ignore_errors=True)
        return result

    def prepare(self, part: str) -> None:
        """Make a teacher set that cells share: ``train`` or ``evaluation``."""
        backbone, _ = self._load()
        if part == "evaluation":
            self._teacher(backbone, self._evaluation_seeds(), "teacher")
            return
        assert self.spec.fit is not None
        for seeds in fit_seeds(self.spec):
            self._teacher(backbone, seeds, "teacher")

    def _load(self) -> tuple[Backbone, Solver]:
        spec = self.spec
        backbone = loaded(spec.backbone.model_dump_json(), spec.network)
        torch.manual_seed(spec.seed)
        solver = solver_of(spec, backbone)
        if isinstance(solver, LearnableSolver) != (spec.fit is not None):
            needs = "needs" if spec.fit is None else "cannot use"
            raise SolverBenchError(f"solver {spec.solver.name} {needs} a fit budget")
        return backbone, solver

    def _teacher(self, backbone: Backbone, seeds: Sequence[int], stage: str) -> Samples:
        spec, batch = self.spec, self.spec.evaluation.batch
        parts = (spec.backbone, backbone.weights_sha256, spec.teacher, seeds[0], seeds[-1], batch)
        key = digest(*parts, *([spec.network] if spec.network.model_dump() else []))
        folder = self.root / "teachers" / f"{spec.backbone.name}-{seeds[0]:05d}-{key}"
        tableau = self._teacher_tableau(backbone)
        return sample_seeds(folder, backbone, tableau, seeds, batch, self._stage(stage))

    def _teacher_tableau(self, backbone: Backbone) -> Tableau:
        named, nfe = self.spec.teacher.solver, self.spec.teacher.nfe
        return load_solver(named.name, backbone, nfe, **named.options).tableau().detach()

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(name, done, total)

    def _evaluation_seeds(self) -> range:
        evaluation = self.spec.evaluation
        return range(evaluation.first_seed, evaluation.first_seed + evaluation.num_images)

    def _measured(self) -> Result:
        backbone, solver = self._load()
        tableau, fit = self._tableau(backbone, solver)
        self.report("sample", 0, 1)
        if self.spec.is_teacher:
            samples = self._teacher(backbone, self._evaluation_seeds(), "sample")
        else:
            batch, report = self.spec.evaluation.batch, self._stage("sample")
            folder = self.work / "samples"
            samples = sample_seeds(
                folder, backbone, tableau, self._evaluation_seeds(), batch, report
            )
        self.report("measure", 0, 1)
        cost = {"seconds_per_image": samples.seconds_per_image, "nfe": samples.nfe}
        cost |= {"network_rows": samples.network_rows, "peak_bytes": samples.peak_bytes}
        numbers, measured, reference, decoding = self._metrics(backbone, samples)
        kept = outcome.write_influences(influence_path(self.path), numbers.influences)
        return Result(
            spec=self.spec,
            title=(solver.title or type(solver).__name__) + schedule_title(self.spec),
            status="ok",
            metrics=numbers.metrics,
            metric_facts=numbers.metric_facts,
            errors=numbers.errors,
            measurement=measured,
            influences_sha256=kept,
            cost=Cost(**cost, **fit, decode_seconds_per_image=decoding),
            provenance=provenance(
                backbone.device,
                backbone.weights_sha256,
                reference,
                self.jobs,
                registry.solvers.package(self.spec.solver.name),
            ),
            conventions=outcome.conventions(tableau)
            | schedule_facts(self.spec.schedule)
            | facts_of(backbone),
            flags=solver.flags,
        )

    def _tableau(self, backbone: Backbone, solver: Solver) -> tuple[Tableau, dict[str, Any]]:
        """Times first, then training, where there are any to find; store the table either way."""
        times = times_of(self.spec, backbone, self.work)
        cost = times.cost() if times else {}
        kept: dict[str, Any] = {"times": list(times.nodes)} if times else {}
        if times:
            solver = solver_of(self.spec, backbone, times.nodes)
        if not isinstance(solver, LearnableSolver):
            tableau = solver.tableau().detach()
            tableau = replace(tableau, meta=tableau.meta | kept)
            tableau.save(self.tableau_path)
            return tableau, cost
        untrained = solver.tableau().A.tolist()
        lesson = self._lesson(backbone)
        fit = Fit(solver, lesson, settled(solver, lesson, self.work))
        tableau = fit.run(self.work, self._stage("fit"))
        kept |= {"untrained": untrained, "trained": self._training(solver, fit)}
        tableau = replace(tableau, meta=tableau.meta | kept)
        tableau.save(self.tableau_path)
        curves = (self.work / "fit.jsonl").read_bytes()
        write_bytes(self.path.with_suffix(".fit.jsonl"), curves)
        spent = {
            "fit_seconds": fit.seconds + cost.get("fit_seconds", 0.0),
            "fit_peak_bytes": max(fit.peak_bytes, cost.get("fit_peak_bytes", 0)),
            "fit_network_rows": fit.network_rows + cost.get("fit_network_rows", 0),
            "fit_iterations": fit.iteration,
            "fit_pairs": len(fit.lesson.train.states) + len(fit.lesson.validation.states),
            "num_parameters": solver.num_used(),
        }
        return tableau, spent

    def _lesson(self, backbone: Backbone) -> Lesson:
        fit = self.spec.fit
        assert fit is not None
        distance = registry.distances.get(fit.distance)(backbone, extractor_of(backbone))
        if fit.pairs is not None:
            made = lesson_pairs(fit, backbone, self._teacher_tableau(backbone))
            return Lesson(fit, self.spec.seed, backbone, distance, *made)
        train, validation = (
            self._teacher(backbone, seeds, "teacher") for seeds in fit_seeds(self.spec)
        )
        return Lesson(fit, self.spec.seed, backbone, distance, train, validation)

    def _training(self, solver: LearnableSolver, fit: Fit) -> dict[str, Any]:
        """What a reader of the table's file must know: budget, seed, backbone, numbers learned."""
        assert self.spec.fit is not None
        pairs = set_sha256(self.spec.fit.pairs)
        return (
            {
                "fit": self.spec.fit.model_dump(mode="json"),
                "seed": self.spec.seed,
                "backbone": self.spec.backbone.model_dump(mode="json"),
                "parameters": {key: p.tolist() for key, p in solver.named_parameters()},
            }
            | fit.rule.facts()
            | fit.settings()
            | ({"pairs_sha256": pairs} if pairs else {})
        )

    def _metrics(
        self, backbone: Backbone, samples: Samples
    ) -> tuple[outcome.Numbers, Measurement, str, float]:
        """Numbers, how they were made, reference hash, seconds of decoding an image."""
        extractor, start = extractor_of(backbone), time.perf_counter()
        generated, seconds = self._features(backbone, extractor, samples, "generated")
        kinds: dict[str, Metric] = {
            name: registry.metrics.get(name)() for name in self.spec.evaluation.metrics
        }
        references: dict[str, Reference] = {"data": extractor.reference()}
        if needs_teacher(self.spec):
            references["teacher"] = self._teacher_reference(backbone, extractor, generated)
        if self.spec.is_teacher:  # its distance to itself says nothing
            kinds = {name: kind for name, kind in kinds.items() if kind.against != "teacher"}
        numbers = outcome.numbers_of(kinds, generated, references, extractor.name)
        spent = time.perf_counter() - start
        measured = outcome.measurement(backbone, extractor, samples.states[:1], spent)
        return numbers, measured, references["data"].sha256, seconds

    def _teacher_reference(
        self, backbone: Backbone, extractor: Extractor, own: Features
    ) -> Reference:
        about = "the teacher's samples of the same seeds"
        if self.spec.is_teacher:
            return reference_of(own, about)
        teacher = self._teacher(backbone, self._evaluation_seeds(), "teacher")
        return reference_of(self._features(backbone, extractor, teacher, "teacher")[0], about)

    def _features(
        self, backbone: Backbone, extractor: Extractor, samples: Samples, name: str
    ) -> tuple[Features, float]:
        """Features, with images only where a metric reads them; seconds of decoding an image."""
        evaluation = self.spec.evaluation
        scratch = self.work / f"{name}.images" if keeps_images(evaluation.metrics) else None
        return sampled_features(backbone, extractor, samples.states, evaluation.batch, scratch)


def run(spec: RunSpec, root: str | Path = "runs") -> Result:
    """Run one cell in this process.

    Args:
        spec: what to run.
        root: folder of records; a finished cell is read from it.

    Returns:
        The record.

    Raises:
        SolverBenchError: for a spec that cannot work, before anything slow starts.
    """
    check_writable(Path(root))
    return Run(spec, Path(root)).execute()


def traced(solver: Solver) -> Tableau | None:
    """A solver's tableau; None where its own code fails: a worker will find that and record it.

    Raises:
        SolverBenchError: for what a user can mend.
    """
    try:
        return solver.tableau().detach()
    except SolverBenchError:
        raise
    except Exception:
        return None


def needs_teacher(spec: RunSpec) -> bool:
    """Whether a metric compares with the teacher's samples of the evaluation seeds."""
    return any(registry.metrics.get(m).against == "teacher" for m in spec.evaluation.metrics)


def fit_seeds(spec: RunSpec) -> tuple[range, range]:
    """Seeds of training (the first) and validation (the last below those of evaluation)."""
    assert spec.fit is not None
    first = FIRST_EVALUATION_SEED - spec.fit.validation_size
    return range(spec.fit.train_size), range(first, FIRST_EVALUATION_SEED)


def extractor_of(backbone: Backbone) -> Extractor:
    """The extractor that measures a backbone's images.

    Raises:
        SolverBenchError: where it has none, or the extractor cannot run here.
    """
    if backbone.extractor is None:
        raise SolverBenchError(f"backbone {backbone.name} has no extractor; its images have no FD")
    return ready(backbone.extractor)


@lru_cache(maxsize=1)  # the cells of a plan share a backbone, and a large one takes seconds
def loaded(named: str, network: NetworkSpec) -> Backbone:
    """The backbone that a ``Named`` in JSON stands for; ``cache_clear`` lets go of its memory."""
    backbone = Named.model_validate_json(named)
    return accelerated(load_backbone(backbone.name, **backbone.options), network)

"""Records survive the disk whole, or say in one line what is wrong with which file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from solverbench.benchmark.results import Cost, MetricFacts, Provenance, Result
from solverbench.benchmark.spec import EvaluationSpec, Named, RunSpec, TeacherSpec
from solverbench.benchmark.store import (
    check_writable,
    read_record,
    read_records,
    record_path,
    write_record,
    write_text,
)
from solverbench.errors import SolverBenchError


def make(nfe: int = 4, solver: str = "gs", fd: float = 1 / 3) -> Result:
    teacher = TeacherSpec(solver=Named(name="unipc-3", options={"t_min": 1e-4}), nfe=20)
    spec = RunSpec(
        backbone=Named(name="digits"),
        solver=Named(name=solver),
        nfe=nfe,
        teacher=teacher,
        evaluation=EvaluationSpec(),
    )
    return Result(
        spec=spec,
        title="GS",
        status="ok",
        metrics={"fd": fd},
        metric_facts={"fd": MetricFacts(label="FD[digits]", higher_is_better=False)},
        cost=Cost(
            nfe=nfe,
            network_rows=nfe,
            seconds_per_image=0.1,
            decode_seconds_per_image=0.0,
            peak_bytes=2**20,
        ),
        provenance=Provenance(
            solverbench="0.1.0",
            python="3.11",
            torch="2.11",
            device="cpu",
            threads=1,
            commit="abc",
            weights_sha256="",
            reference_sha256="",
            created="2026-11-20T10:00:00Z",
        ),
    )


def test_a_record_comes_back_equal_to_the_last_bit(tmp_path: Path) -> None:
    path = write_record(tmp_path, make())
    assert path == record_path(tmp_path, make().spec)
    assert path.relative_to(tmp_path).as_posix() == f"digits/gs/nfe04-{make().spec.key()}.json"
    assert read_record(path) == make()


def test_records_are_read_in_path_order_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for nfe in (10, 4):
        path = write_record(tmp_path, make(nfe))
    (path.parent / "nfe04-0123456789ab.json.tmp").write_text("{")
    (path.parent / "nfe04-notes.json").write_text("{")
    write_text(tmp_path / "teachers" / "manifest.json", "{}")
    assert [r.spec.nfe for r in read_records(tmp_path)] == [4, 10]


def test_a_second_write_replaces_the_record_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_record(tmp_path, make(fd=1.0))
    path = write_record(tmp_path, make(fd=2.0))
    assert read_record(path).metrics == {"fd": 2.0}
    assert list(path.parent.iterdir()) == [path]


def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = make().model_copy(update={"metrics": {"fd": float("nan")}})
    with pytest.raises(ValueError, match="finite numbers only"):
        write_record(tmp_path, result)
    assert not list(tmp_path.iterdir())


def cut(text: str) -> str:
    return text[: len(text) // 2]


def other_schema(text: str) -> str:
    return json.dumps(json.loads(text) | {"schema_version": 99})


def unknown_key(text: str) -> str:
    return json.dumps(json.loads(text) | {"surprise": 1})


def foreign(text: str) -> str:
    return '{"loss": [1, 2]}'


def empty(text: str) -> str:
    return ""


def deep(text: str) -> str:
    return "[" * 200_000


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut, "torn or not JSON"),
        (empty, "torn or not JSON"),
        (deep, "torn or not JSON"),
        (other_schema, "schema_version 99; this solverbench reads 1"),
        (unknown_key, "not a valid record: surprise"),
        (foreign, "not a solverbench record"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, spoil: Callable[[str], str], says: str
) -> None:
    path = write_record(tmp_path, make())
    path.write_text(spoil(path.read_text()))
    for read in (lambda: read_record(path), lambda: read_records(tmp_path)):
        with pytest.raises(SolverBenchError, match=says) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_binary_content_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "nfe04-0123456789ab.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SolverBenchError, match="torn"):
        read_record(path)


def test_no_folder_and_no_records_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="no folder"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(SolverBenchError, match="no records"):
        read_records(tmp_path)


def test_a_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SolverBenchError, match=r"cannot write in .*file/runs: Not a directory"):
        check_writable(tmp_path / "file" / "runs")
    with pytest.raises(SolverBenchError, match="cannot write"):
        write_record(tmp_path / "file", make())


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_plugin_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="cannot name a folder"):
        record_path(tmp_path, make(solver="../gs").spec)

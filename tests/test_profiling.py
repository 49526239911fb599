"""Where a step's time and bytes go: on a trace made by hand, then on small real steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from solverbench.benchmark.spec import Named
from solverbench.cli import main
from solverbench.profiling import Job, Profile, measured, prepared
from solverbench.stages import PREFIX
from solverbench.traces import STEP, Stage, stages_of

NFE, BATCH = 2, 4
STATE = 8 * 8 * 4  # bytes of one state of digits


def profiled(solver: str, train: bool, memory: str = "store", **options: Any) -> Profile:
    """A step on digits; one that counts is enough to see what is in it."""
    named, digits = Named(name=solver, options=options), Named(name="digits")
    job = Job(named, digits, NFE, train, BATCH, memory, steps=1)
    return measured(job, prepared(job))


@pytest.fixture(scope="module")
def trained() -> Profile:
    return profiled("gs", train=True)


def of(found: Profile, name: str) -> Stage:
    (stage,) = (stage for stage in found.stages if stage.name == name)
    return stage


def ranged(name: str, start: float, end: float, thread: int = 1) -> dict[str, Any]:
    full = STEP if name == "step" else PREFIX + name
    times = {"ts": start, "dur": end - start, "tid": thread}
    return {"ph": "X", "cat": "user_annotation", "name": full} | times


def memory(moment: float, size: int, kind: int = 0) -> dict[str, Any]:
    return {"name": "[memory]", "ts": moment, "args": {"Bytes": size, "Device Type": kind}}


def test_a_moment_belongs_to_the_innermost_range_whatever_its_thread() -> None:
    events = [
        ranged("step", 0, 100),
        ranged("solver algebra", 10, 60),
        ranged("network forward", 20, 30),
        ranged("network backward", 40, 55, thread=2),
        {"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 12, "dur": 3},
    ]
    found = {stage.name: stage for stage in stages_of({"traceEvents": events})}
    seconds = {name: round(stage.seconds * 1e6, 6) for name, stage in found.items()}
    assert seconds == {
        "network forward": 10,
        "network backward": 15,
        "solver algebra": 25,
        "other": 50,
    }


def test_bytes_belong_to_the_range_in_which_they_change_and_peaks_count_what_was_there() -> None:
    events = [
        ranged("step", 0, 100),
        ranged("network forward", 20, 30),
        ranged("network backward", 40, 60),
        *(memory(5, 10), memory(22, 100), memory(25, -30), memory(50, 5), memory(51, -85)),
        *(memory(23, 1000, kind=1), memory(70, 7), memory(120, 1000)),
    ]
    found = {stage.name: stage for stage in stages_of({"traceEvents": events})}
    figures = {name: (stage.kept_bytes, stage.peak_bytes) for name, stage in found.items()}
    assert figures == {
        "network forward": (70, 110),
        "network backward": (-80, 85),
        "other": (17, 80),
    }


def test_times_of_a_training_step_are_positive_and_sum_up_to_it(trained: Profile) -> None:
    wanted = {"network forward", "network backward", "solver algebra", "loss", "optimiser"}
    assert wanted <= {stage.name for stage in trained.stages}
    assert all(stage.seconds > 0 for stage in trained.stages)
    (step,) = (e for e in trained.trace["traceEvents"] if e["name"] == STEP)
    # starts are microseconds since the machine was, with three decimals: near 1e-3 of rounding
    assert trained.seconds * 1e6 == pytest.approx(step["dur"], abs=0.1)


def test_bytes_of_a_training_step_add_up_to_its_allocations(trained: Profile) -> None:
    events = trained.trace["traceEvents"]
    (step,) = (e for e in events if e["name"] == STEP)
    inside = [e for e in events if e["name"] == "[memory]" and e["ts"] < step["ts"] + step["dur"]]
    live, peak = 0, 0
    for event in sorted(inside, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    assert (trained.kept_bytes, trained.peak_bytes) == (live, peak)
    assert peak > 0


def test_stored_activations_are_made_forward_and_let_go_of_backward(trained: Profile) -> None:
    forward, backward = of(trained, "network forward"), of(trained, "network backward")
    assert forward.kept_bytes > 100 * BATCH * STATE  # of two calls of a network with 16 layers
    assert backward.kept_bytes < -0.9 * forward.kept_bytes
    assert abs(trained.kept_bytes) < 0.01 * trained.peak_bytes  # a step leaves next to nothing


def test_calls_and_the_bare_network_count_what_is_recomputed(trained: Profile) -> None:
    again = profiled("gs", train=True, memory="recompute")
    assert (trained.calls, trained.network_rows) == (NFE, NFE * BATCH)
    assert (again.calls, again.network_rows) == (2 * NFE, 2 * NFE * BATCH)
    assert trained.bound == "2 forward with backward to the input"
    assert again.bound == "2 forward with backward to the input, 2 forward alone"
    assert again.peak_bytes < 0.8 * trained.peak_bytes  # one call's activations for those of two
    assert min(again.ratio, trained.ratio) > 0.3  # a step holds its network passes; times scatter


def test_sampling_keeps_no_activations() -> None:
    found = profiled("ddim", train=False)
    forward = of(found, "network forward")
    assert (found.calls, found.network_rows, found.bound) == (NFE, NFE * BATCH, "2 forward alone")
    assert 0 < forward.kept_bytes <= NFE * BATCH * STATE  # its outputs
    assert found.kept_bytes == 0


def test_the_adversary_plays_in_the_profiled_step_whatever_it_would_wait_for() -> None:
    found = profiled("gas", train=True, warm_start=0.5, disc_warmup=0.2)
    assert of(found, "discriminator").seconds > 0
    assert "warm_start and disc_warmup left out: the adversary plays at once" in found.notes
    assert found.network_rows == 2 * NFE * BATCH  # the fakes of fresh noise too


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["profile", *map(str, words)])


def test_the_command_prints_a_table_and_writes_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "new" / "trace.json"
    options = ("--nfe", 2, "--train", "--batch", 4, "--steps", 1, "--memory", 1, "--trace", file)
    done = call("gs", "--backbone", "digits", *options)
    assert done.exit_code == 0, done.output
    for words in ("GS on digits, NFE 2: one training", "network backward", "step", "rows a step"):
        assert words in done.stdout
    trace = json.loads(file.read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {STEP, f"{PREFIX}network forward", "[memory]"} <= names
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_the_command_gives_the_same_figures_as_json() -> None:
    done = call("ddim", "--backbone", "digits", "--nfe", 2, "--batch", 4, "--steps", 1, "--json")
    figures = json.loads(done.stdout)
    total = sum(stage["seconds"] for stage in figures["stages"])
    assert figures["seconds"] == pytest.approx(total, rel=1e-9)
    assert figures["calls"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nope", "--nfe", 2), "unknown solver 'nope'"),
        (("ddim", "--nfe", 2, "--train"), "learns nothing"),
        (("gs", "--nfe", 2, "--memory", "store"), "add --train"),
        (("gs", "--nfe", 2, "--train", "--memory", "some"), "store, recompute, or a number"),
        (("gs", "--nfe", 2, "--train", "--distance", "far"), "unknown distance 'far'"),
        (("gs", "--nfe", 2, "--train", "--option", "weight=1"), "has no option 'weight'"),
        (("heun", "--nfe", 2), "odd nfe"),
        (("gs", "--nfe", 2, "--trace", Path(__file__).parent), "is a folder"),
    ],
)
def test_wrong_input_is_one_line(words: tuple[object, ...], said: str) -> None:
    done = call(*words, "--backbone", "digits")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1

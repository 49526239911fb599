"""Pages are a pure function of records, and the check finds what is not in order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from solverbench.benchmark.outcome import write_influences
from solverbench.benchmark.results import Result as Record
from solverbench.benchmark.store import influence_path, record_path, write_record
from solverbench.cli import main
from solverbench.leaderboards import boards
from solverbench.reporting import studies
from solverbench.solvers.tableau import Tableau

TIMES = ([1.0, 0.6, 0.3, 0.1, 0.001], [1.0, 0.6, 0.3, 0.1])
Make = Callable[..., Record]


def cli(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def add(root: Path, source: str, record: Record) -> Path:
    return write_record(root / "records" / source, record)


def with_files(root: Path, record: Record) -> Path:
    """A record of four calls with its influences and its tableau beside it."""
    folder = root / "records" / "first"
    rows = {"fd": torch.tensor([6.0, 8.0, 7.0, 7.0])}
    path = record_path(folder, record.spec)
    sha256 = write_influences(influence_path(path), rows)
    tableau = Tableau(
        torch.tril(torch.ones(5, 5, dtype=torch.float64)),
        torch.tensor(TIMES[1], dtype=torch.float64),
        torch.tensor(TIMES[0], dtype=torch.float64),
    )
    tableau.save(path.with_suffix(".safetensors"))
    said = {"t": TIMES[0], "t_eval": TIMES[1]}
    changed = {"influences_sha256": sha256, "conventions": said}
    return write_record(folder, record.model_copy(update=changed))


@pytest.fixture
def root(tmp_path: Path, group: list[Record]) -> Path:
    """A leaderboard of one recipe with remarks, built."""
    for record in group:
        add(tmp_path, "first", record)
    (tmp_path / "remarks").mkdir()
    (tmp_path / "remarks" / "first.md").write_text("### As found\n\n- Little.\n")
    assert cli("leaderboard", "build", "--root", tmp_path).exit_code == 0
    return tmp_path


def texts(root: Path) -> dict[str, str]:
    folder = root / "pages"
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.md")}


def problem(root: Path) -> str:
    """The one line of a check that fails, without the verdict below it."""
    done = cli("leaderboard", "check", "--root", root)
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    return line


def test_the_committed_leaderboard_is_in_order() -> None:
    assert boards.problems() == []
    assert boards.differences(boards.ROOT, studies(boards.ROOT)) == []


def test_a_board_shows_cells_provenance_records_and_published_state(root: Path) -> None:
    page = texts(root)["backbones/cifar16-protocol-1.md"]
    assert page.startswith("# Leaderboard of cifar16, protocol 1\n")
    assert "| GS | 4 | this project (first) | [0](../../records/first/cifar16/gs/nfe04-" in page
    assert "### FD[cifar16] (lower is better)" in page
    assert "Cost, measured" in page
    assert "[cifar16](backbones/cifar16-protocol-1.md)" in texts(root)["README.md"]
    assert "0 of 547 values reproduced" in texts(root)["README.md"]


def test_building_again_changes_nothing(root: Path) -> None:
    before = texts(root)
    done = cli("leaderboard", "build", "--root", root)
    assert done.stdout.splitlines()[-1].endswith("pages, 0 changed")
    assert texts(root) == before
    assert cli("leaderboard", "check", "--root", root).exit_code == 0


def test_a_new_record_changes_exactly_the_pages_concerned(root: Path, make: Make) -> None:
    add(root, "other", make("ddim", 4, {"fd": 9.0}, backbone="digits"))
    cli("leaderboard", "build", "--root", root)
    before = texts(root)
    add(root, "first", make("ddim", 8, {"fd": 20.0}))
    assert cli("leaderboard", "check", "--root", root).exit_code == 1
    cli("leaderboard", "build", "--root", root)
    after = texts(root)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"first.md", "backbones/cifar16-protocol-1.md", "README.md"}


@pytest.mark.parametrize("command", ["build", "check"])
def test_a_folder_that_is_no_leaderboard_is_one_line_and_stays_as_it_was(
    tmp_path: Path, command: str
) -> None:
    done = cli("leaderboard", command, "--root", tmp_path / "none")
    assert done.exit_code == 2
    assert done.stderr.endswith("takes the folder of records, remarks and pages\n")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_a_study_without_records_is_found_and_deleted(root: Path) -> None:
    page = root / "pages" / "paper" / "4.md"
    page.parent.mkdir()
    page.write_text("Once.\n")
    assert "pages/paper/4.md has no records; delete it" in problem(root)
    assert cli("leaderboard", "build", "--root", root).exit_code == 0
    assert not page.exists()


def test_a_cell_of_two_recipes_is_one_row_with_both_sources(root: Path, make: Make) -> None:
    add(root, "second", make("teacher", 20, {"fd": 6.2}, created="2026-11-21T10:00:00Z"))
    assert cli("leaderboard", "build", "--root", root).exit_code == 0
    page = texts(root)["backbones/cifar16-protocol-1.md"]
    row = "this project (first); this project (second) | [0](../../records/second/"
    assert page.count(row) == 1
    assert "6.20" in page
    assert "6.15" not in page  # the older record


def test_check_finds_a_page_edited_by_hand(root: Path) -> None:
    page = root / "pages" / "first.md"
    page.write_text(page.read_text().replace("7.05", "6.05"))
    assert problem(root) == (
        "pages/first.md is not what its records give; run solverbench leaderboard build"
    )


def test_check_finds_a_missing_page_and_one_without_records(root: Path) -> None:
    (root / "pages" / "status.md").rename(root / "pages" / "backbones" / "gone-protocol-1.md")
    lines = cli("leaderboard", "check", "--root", root).stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "pages/status.md",
        "pages/backbones/gone-protocol-1.md",
    ]
    assert "deleted pages/backbones/gone" in cli("leaderboard", "build", "--root", root).stdout


def test_check_finds_a_record_of_another_protocol(root: Path, make: Make) -> None:
    add(root, "first", make("ddim", 8, {"fd": 20.0}, version=0))
    assert problem(root).startswith("first holds records of protocols 0, 1; two never share")


def test_two_protocols_in_folders_of_their_own_have_boards_of_their_own(
    root: Path, make: Make
) -> None:
    add(root, "old", make("ddim", 8, {"fd": 20.0}, version=0))
    assert cli("leaderboard", "build", "--root", root).exit_code == 0
    old, new = (texts(root)[f"backbones/cifar16-protocol-{n}.md"] for n in (0, 1))
    assert "20.00" in old
    assert "20.00" not in new


def test_check_finds_a_record_of_a_protocol_from_the_future(root: Path, make: Make) -> None:
    add(root, "next", make("ddim", 8, {"fd": 20.0}, version=2))
    assert "is of protocol 2; this solverbench knows 1 and older" in problem(root)


def test_check_finds_a_cell_twice_in_one_folder(root: Path, make: Make) -> None:
    add(root, "first/again", make("ddim", 4, {"fd": 50.0}))
    assert "is a duplicate of records/first/" in problem(root)


def test_check_finds_an_edited_spec_by_its_key(root: Path) -> None:
    path = next((root / "records").rglob("ddim/nfe04-*.json"))
    path.write_text(path.read_text().replace('"num_images": 2000', '"num_images": 2001'))
    assert "renamed, or its spec was edited" in problem(root)


def test_check_finds_an_invalid_schema(root: Path) -> None:
    path = next((root / "records").rglob("ddim/nfe04-*.json"))
    path.write_text(path.read_text().replace('"status"', '"state"'))
    assert "is not a valid record" in problem(root)


def test_check_finds_calls_that_were_not_those_of_the_cell(root: Path) -> None:
    path = next((root / "records").rglob("ddim/nfe04-*.json"))
    text = path.read_text()
    at = text.index('"cost"')
    path.write_text(text[:at] + text[at:].replace('"nfe": 4', '"nfe": 3', 1))
    assert "counted 3 network calls a sample; its cell has 4" in problem(root)


def test_check_accepts_sidecars_that_belong_to_their_record(root: Path, make: Make) -> None:
    path = with_files(root, make("ddim", 4, {"fd": 7.0}, options={"schedule": "edm"}))
    assert cli("leaderboard", "build", "--root", root).exit_code == 0
    link = path.with_suffix(".safetensors").relative_to(root).as_posix()
    assert f"[0](../../{link})" in texts(root)["backbones/cifar16-protocol-1.md"]


@pytest.mark.parametrize(
    ("ending", "place", "said"),
    [
        (".influence.safetensors", -3, "is damaged or of another run than its record"),
        (".safetensors", -3, "is damaged: its checksum does not fit"),
        (".safetensors", 3, "is torn or no file of solverbench"),
    ],
)
def test_check_finds_a_wrong_hash_of_a_sidecar(
    root: Path, make: Make, ending: str, place: int, said: str
) -> None:
    path = with_files(root, make("ddim", 4, {"fd": 7.0}, options={"schedule": "edm"}))
    file = path.with_suffix(ending)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))
    assert said in problem(root)


def test_check_finds_a_tableau_of_another_run(root: Path, make: Make) -> None:
    path = with_files(root, make("ddim", 4, {"fd": 7.0}, options={"schedule": "edm"}))
    file = path.with_suffix(".safetensors")
    found = Tableau.load(file)
    Tableau(found.A, found.tau * 0.999, found.nodes).save(file)
    assert "is of another run: its times are not those of its record" in problem(root)


def test_check_finds_a_table_of_another_number_of_calls(root: Path, make: Make) -> None:
    path = with_files(root, make("ddim", 4, {"fd": 7.0}, options={"schedule": "edm"}))
    file = path.with_suffix(".safetensors")
    found = Tableau.load(file)
    Tableau(found.A[:4, :4].contiguous(), found.tau[:3], found.nodes[:4]).save(file)
    assert "makes 3 network calls a sample; its record counted 4" in problem(root)


def test_check_finds_sidecars_without_a_record_and_misses_no_influences(
    root: Path, make: Make
) -> None:
    """Influences of many records are large, so this project's own may stay away."""
    path = with_files(root, make("ddim", 4, {"fd": 7.0}, options={"schedule": "edm"}))
    influence_path(path).rename(path.with_name("nfe09-0123456789ab.influence.safetensors"))
    said = problem(root)
    assert said.endswith("nfe09-0123456789ab.influence.safetensors belongs to no record; delete it")


def test_nothing_is_built_from_records_that_are_not_in_order(root: Path, make: Make) -> None:
    before = texts(root)
    add(root, "first", make("ddim", 8, {"fd": 20.0}, version=0))
    done = cli("leaderboard", "build", "--root", root)
    assert (done.exit_code, texts(root)) == (1, before)
    assert "nothing was written" in done.stderr


def test_influences_of_every_folder_reach_the_paired_test_of_a_board(
    root: Path, make: Make
) -> None:
    """Two cells from two folders with the same images: the difference is exact, so one is bold."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(7.0, 1.0, 64)).float()
    for source, solver, shift in (("a", "ddim", 0.0), ("b", "unipc-3", 0.01)):
        record = make(solver, 5, {"fd": 7.0 + shift}, backbone="digits")
        path = record_path(root / "records" / source, record.spec)
        sha256 = write_influences(influence_path(path), {"fd": rows + shift})
        add(root, source, record.model_copy(update={"influences_sha256": sha256}))
    cli("leaderboard", "build", "--root", root)
    assert "**7.00**" in texts(root)["backbones/digits-protocol-1.md"]

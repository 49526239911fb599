"""Import of the paper's teacher sets, and fits on them."""

import pickle
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import solverbench
from solverbench.benchmark.importing import teacher
from solverbench.benchmark.importing.pairs import check_set, read_index, read_pairs
from solverbench.benchmark.importing.teacher import check_noise, import_teacher
from solverbench.benchmark.launch import plan
from solverbench.benchmark.load import load_backbone
from solverbench.benchmark.run import Run, fit_seeds
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.store import RECORD_NAME, read_record
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau
from tests.benchmark.artefacts import (
    BACKBONES,
    NUM,
    Change,
    Labelled,
    backbone_of,
    changed,
    published,
    swapped,
    without,
    write,
)
from tests.benchmark.cells import FIT, cell

RECORDS = Path(solverbench.__file__).parent / "leaderboards" / "records"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "SHARD", 1 << 16)  # some 40 rows


@pytest.mark.parametrize("form", ["pickle", "pickle3", "torch"])
@pytest.mark.parametrize("latents", [True, False], ids=["latent", "pixel"])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_rows_come_back_bit_for_bit_and_in_order(
    kind: str, latents: bool, form: str, tmp_path: Path
) -> None:
    backbone, found = backbone_of(kind), published(kind, latents)
    index = import_teacher(write(tmp_path / "set.pkl", found, form), backbone, tmp_path / "out")
    assert len(index.shards) > 2
    assert read_index(tmp_path / "out") == index
    got = read_pairs(tmp_path / "out", backbone, range(NUM))
    assert torch.equal(got.noise, found["noise"])
    assert torch.equal(got.states, found["latents" if latents else "images"])
    some = read_pairs(tmp_path / "out", backbone, range(37, 95))
    assert torch.equal(some.noise, found["noise"][37:95])
    if kind == "none":
        assert got.condition is None
        return
    assert got.condition is not None
    assert some.condition is not None
    first = [0, 1, 2, 0, 4] if kind == "prompt" else [0, 1, 2, 3, 4]  # equal prompts: the first
    assert got.condition.labels[:5].tolist() == first
    assert torch.equal(some.condition.labels, got.condition.labels[37:95])


def test_decoded_images_are_copied_only_where_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "set.pkl", published())
    sizes = {}
    for images in (False, True):
        out = tmp_path / str(images)
        assert import_teacher(path, backbone_of("none"), out, images).images == images
        sizes[images] = sum(file.stat().st_size for file in out.iterdir())
    assert sizes[True] - sizes[False] > 4 * NUM * 3 * 16 * 16
    got = read_pairs(tmp_path / "True", backbone_of("none"), range(NUM))
    assert torch.equal(got.states, published()["latents"])


def test_rows_stored_channels_last_are_read_as_what_they_are(tmp_path: Path) -> None:
    found = published()
    found["noise"] = found["noise"].to(memory_format=torch.channels_last)
    assert not found["noise"].is_contiguous()
    path = write(tmp_path / "set.pkl", found)
    import_teacher(path, backbone_of("none"), tmp_path / "out")
    got = read_pairs(tmp_path / "out", backbone_of("none"), range(NUM))
    assert torch.equal(got.noise, found["noise"])


def test_it_is_recorded_whether_our_generator_gives_the_noise(tmp_path: Path) -> None:
    backbone, found = backbone_of("none"), published()
    path = write(tmp_path / "a.pkl", found)
    assert not import_teacher(path, backbone, tmp_path / "a").origin.cpu_noise
    found["noise"] = backbone.noise(range(NUM))
    path = write(tmp_path / "b.pkl", found)
    assert import_teacher(path, backbone, tmp_path / "b").origin.cpu_noise


def _nan(key: str, row: int) -> Change:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        found[key][row, 0, 0, 0] = torch.nan
        return found

    return change


REFUSED: dict[str, tuple[str, Change, str]] = {
    "no latents": ("none", without("latents"), "lacks latents; a teacher set has noise, images"),
    "a list": ("none", lambda found: [found], "a teacher set is a dict, this is a list"),
    "swapped": ("none", swapped("noise", "latents"), "mean square.*in the wrong order"),
    "swapped by shape": ("none", swapped("images", "latents"), "they must be equal"),
    "rows": ("none", lambda f: f | {"latents": f["latents"][1:]}, "200 rows, latents has 199"),
    "few images": ("none", lambda f: f | {"images": f["images"][1:]}, "200 rows, images has 199"),
    "half": ("none", lambda f: f | {"noise": f["noise"].half()}, "must hold torch.float32"),
    "axes": (
        "none",
        lambda f: f | {"noise": torch.empty(3, 8, 8, NUM).normal_().permute(3, 0, 1, 2)},
        "do not lie one after the other",
    ),
    "one row for all": (
        "none",
        lambda f: f | {"noise": torch.randn(1, 3, 8, 8).expand(NUM, -1, -1, -1)},
        "a tensor is larger than its storage",
    ),
    "flat": ("none", lambda f: f | {"noise": f["noise"].flatten(1)}, "no tensor of shape"),
    "constant noise": ("none", lambda f: f | {"noise": 0 * f["noise"]}, "no standard normal"),
    "smooth noise": (
        "none",
        lambda f: f | {"noise": f["noise"][..., :1].expand(-1, -1, -1, 8).contiguous()},
        "product of neighbours",
    ),
    "nan at the end": ("none", _nan("latents", 199), "states of rows .* are not all finite"),
    "some latents": ("none", changed(latents=[None] * 199), "neither a tensor nor a list of 200"),
    "labels for none": ("none", changed(condition=torch.zeros(NUM).long()), "conditioned on class"),
    "none for labels": ("class", changed(condition=[None] * NUM), "conditioned on none"),
    "few labels": ("class", changed(condition=torch.zeros(5).long()), "no int64 tensor of 200"),
    "float labels": ("class", changed(condition=torch.zeros(NUM)), "no int64 tensor of 200"),
    "other labels": ("class", changed(condition=torch.full((NUM,), 7)), "outside 0 .. 6"),
    "mixed": ("prompt", changed(condition=["a cat", None] * 100), "mixes prompts"),
    "few prompts": ("prompt", changed(condition=["a cat"]), "nor a list of 200"),
    "foreign prompt": (
        "prompt",
        changed(condition=["cats"] * NUM),
        "does not know the prompt",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_set_is_refused_in_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    kind, change, why = REFUSED[name]
    path = write(tmp_path / "set.pkl", change(published(kind)))
    with pytest.raises(SolverBenchError, match=why) as caught:
        import_teacher(path, backbone_of(kind), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.pkl"]


def test_a_set_of_another_shape_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set.pkl", published())
    with pytest.raises(SolverBenchError, match=r"shape \(3, 8, 8\), those of backbone digits"):
        import_teacher(path, load_backbone("digits"), tmp_path / "out")
    with pytest.raises(SolverBenchError, match="cannot be read"):
        import_teacher(tmp_path / "none.pkl", backbone_of("none"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(SolverBenchError, match="exists; remove it"):
        import_teacher(path, backbone_of("none"), tmp_path / "out")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(published())
    for share in (0.01, 0.3, 0.9, 0.9999):
        path = tmp_path / "set.pkl"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(SolverBenchError, match="cut or damaged"):
            import_teacher(path, backbone_of("none"), tmp_path / "out")


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "set.pkl", published())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(SolverBenchError, match="GB free"):
        import_teacher(path, backbone_of("none"), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_an_import_cut_short_leaves_no_set_and_the_next_one_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path / "set.pkl", published()), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            assert not out.exists()
            shutil.copytree(tmp_path / ".out.partial", tmp_path / "kept")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_teacher(path, backbone_of("none"), out, progress=stop)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["kept", "set.pkl"]
    (tmp_path / "kept" / "99999999.safetensors").write_bytes(b"of a killed run")
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    index = import_teacher(path, backbone_of("none"), out)
    assert len(list(out.iterdir())) == len(index.shards) + 1
    assert not (tmp_path / ".out.partial").exists()
    assert torch.equal(read_pairs(out, backbone_of("none"), range(NUM)).noise, published()["noise"])


def test_statistics_pass_noise_of_any_size() -> None:
    """A thousand parts of the size that is read at once, and small ones."""
    rng = torch.Generator().manual_seed(0)
    for shape in [(8, 3, 16, 16)] * 1000 + [(50, 1, 1, 1)] * 20:
        check_noise(torch.randn(shape, generator=rng))


LARGE = """
import sys
from pathlib import Path
import torch
from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.importing.teacher import import_teacher
from solverbench.benchmark.meter import peak_memory
backbone = Gaussian(shape=(4, 32, 32))
with peak_memory(torch.device("cpu")) as peak:
    import_teacher(Path(sys.argv[1]), backbone, Path(sys.argv[2]))
print(peak.bytes)
"""


def test_memory_stays_far_below_the_size_of_the_file(tmp_path: Path) -> None:
    """100 MB for a file of 300 MB: some copies of a shard of 16 MB, whatever the file's size."""
    num = 3000
    found: dict[str, Any] = defaultdict(list)
    found["noise"] = torch.randn(num, 4, 32, 32)
    found["images"] = torch.zeros(num, 3, 75, 75)
    found["latents"] = torch.zeros(num, 4, 32, 32)
    found["condition"] = [None] * num
    path, out = tmp_path / "set.pkl", tmp_path / "out"
    with path.open("wb") as file:
        pickle.dump(found, file)
    assert path.stat().st_size > 3e8
    done = subprocess.run(
        [sys.executable, "-c", LARGE, path, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_index(out).rows == num
    assert 1e7 < int(done.stdout) < 1e8  # a shard at least, or nothing was measured
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A published set whose first and last rows are those of our own seeds; a run on our own."""
    root = tmp_path_factory.mktemp("own")
    run = Run(cell("gs", 3, FIT), root / "runs")
    assert run.execute().status == "ok"
    backbone = run._load()[0]
    first, last = (run._teacher(backbone, seeds, "teacher") for seeds in fit_seeds(run.spec))
    between = torch.randn(20, 1, 8, 8)  # rows that no fit of this size may touch
    found = {"noise": torch.cat([first.noise, between, last.noise])}
    found["images"] = torch.cat([first.states, 0.1 * between, last.states])
    rest = {"latents": [None] * 44, "condition": [None] * 44}
    path = write(root / "set.pkl", defaultdict(list, found | rest))
    import_teacher(path, backbone, root / "set")
    return root, run


def with_pairs(folder: Path, **changes: Any) -> Any:
    fit = FIT.model_copy(update={"pairs": str(folder)} | changes)
    return cell("gs", 3, fit)


def test_a_fit_on_an_imported_set_is_that_on_our_own(
    taught: tuple[Path, Run], tmp_path: Path
) -> None:
    """Bit for bit: the set holds the very rows of our own."""
    root, own = taught
    run = Run(with_pairs(root / "set"), tmp_path)
    result = run.execute()
    assert result.status == "ok", result.reason
    mine, other = Tableau.load(own.tableau_path), Tableau.load(run.tableau_path)
    assert torch.equal(mine.A, other.A)
    assert mine.meta["trained"]["parameters"] == other.meta["trained"]["parameters"]
    known = own.execute()
    curves = [r.path.with_suffix(".fit.jsonl").read_text() for r in (own, run)]
    assert curves[0] == curves[1]
    assert result.metrics == known.metrics
    assert len(result.conventions["pairs_sha256"]) == 64
    assert "pairs_sha256" not in known.conventions
    assert not (tmp_path / "teachers").exists()
    assert [job.kind for job in plan([with_pairs(root / "set")], tmp_path / "new")[0]] == []


def test_a_record_falls_when_its_set_is_replaced_and_stands_when_it_is_gone(
    taught: tuple[Path, Run], tmp_path: Path
) -> None:
    root, folder = taught[0], tmp_path / "set"
    shutil.copytree(root / "set", folder)
    run = Run(with_pairs(folder), tmp_path / "runs")
    run.execute()
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"set.pkl"', '"other.pkl"'))
    assert run.done() is None
    shutil.rmtree(folder)
    assert run.done() is not None


def test_a_set_whose_rows_do_not_belong_together_is_refused_by_the_fit(
    taught: tuple[Path, Run], tmp_path: Path
) -> None:
    root, own = taught
    backbone = own._load()[0]
    pairs = read_pairs(root / "set", backbone, range(44))
    found = {"noise": pairs.noise, "images": pairs.states.roll(1, 0), "latents": [None] * 44}
    path = write(tmp_path / "set.pkl", found | {"condition": [None] * 44})
    import_teacher(path, backbone, tmp_path / "set")
    result = Run(with_pairs(tmp_path / "set"), tmp_path / "runs").execute()
    assert result.status == "failed"
    assert "was not made by this recipe's teacher" in result.reason


def test_sets_that_a_fit_cannot_use_are_refused_before_it_starts(
    taught: tuple[Path, Run], tmp_path: Path
) -> None:
    root, digits = taught[0], load_backbone("digits")
    folder = tmp_path / "set"
    shutil.copytree(root / "set", folder)
    spec = with_pairs(folder).fit
    check_set(spec, digits)
    check_set(FIT, digits)
    with pytest.raises(SolverBenchError, match=r"44 rows; train_size \+ validation_size is 45"):
        check_set(spec.model_copy(update={"train_size": 37}), digits)
    with pytest.raises(SolverBenchError, match=r"no teacher set in .*solverbench import teacher"):
        Run(with_pairs(tmp_path / "none"), tmp_path / "runs").check()
    with pytest.raises(SolverBenchError, match="holds states of shape"):
        check_set(spec, backbone_of("none"))
    with pytest.raises(SolverBenchError, match="conditioned on none, backbone gaussian on class"):
        check_set(spec, Labelled(shape=(1, 8, 8)))
    path = folder / "00000000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(SolverBenchError, match="damaged"):
        read_pairs(folder, digits, range(3))
    index = folder / "index.json"
    path.write_bytes(whole)
    text = index.read_text()
    first = read_index(folder).shards[0]
    index.write_text(text.replace(first, "0" * 64))
    with pytest.raises(SolverBenchError, match="belongs to another set"):
        read_pairs(folder, digits, range(3))
    for torn in (text[:40], text.replace('"rows"', '"columns"'), text.replace(f'"{first}"', "")):
        index.write_text(torn)
        with pytest.raises(SolverBenchError, match="damaged"):
            read_index(folder)


def test_prompts_that_changed_since_the_import_are_refused(tmp_path: Path) -> None:
    backbone = backbone_of("prompt")
    import_teacher(write(tmp_path / "set.pkl", published("prompt")), backbone, tmp_path / "out")
    backbone.prompt_lines = ["a cat", "two cats", "", "a cat", "snow"]  # type: ignore[attr-defined]
    with pytest.raises(SolverBenchError, match="imported with other prompts"):
        read_pairs(tmp_path / "out", backbone, range(3))


def test_a_fit_without_a_set_keeps_the_hash_that_records_are_named_by() -> None:
    """Every record that ships lies under the key of its spec; a set counts where it is named."""
    paths = [p for p in RECORDS.rglob("nfe*.json") if RECORD_NAME.fullmatch(p.name)]
    assert len(paths) > 20
    for path in paths:
        assert path.stem.endswith(read_record(path).spec.key())
    assert "pairs" not in FIT.model_dump()
    assert FitSpec.model_validate(FIT.model_dump()) == FIT
    keys = {with_pairs(Path(name)).key() for name in ("a", "b")} | {cell("gs", 3, FIT).key()}
    assert len(keys) == 3


def test_a_place_with_an_impossible_name_is_one_line(tmp_path: Path) -> None:
    for place in (tmp_path / ("x" * 5000), Path("/"), tmp_path / ".."):
        with pytest.raises(SolverBenchError, match=r"cannot make .*too long|exists; remove it"):
            import_teacher(tmp_path / "set.pkl", backbone_of("none"), place)
    with pytest.raises(SolverBenchError, match="is damaged"):
        read_index(Path("x" * 5000))

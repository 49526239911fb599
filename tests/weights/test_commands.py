"""``solverbench weights``, ``show`` of weights files, and backbones whose files are missing."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from solverbench import converting, registry, tensorfile, weights
from solverbench.backbones import edm_files
from solverbench.cli_parts import Group
from solverbench.discriminator import load
from solverbench.inspecting import weights_facts
from tests.backbones.emit import fixture_file
from tests.weights.serving import NAME, Server, listed, run


def test_the_list_says_what_is_here(place: Path) -> None:
    path = weights.path("vgg16")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    rows = {row["name"]: row for row in json.loads(run("weights", "list", "--json").stdout)}
    assert {name for name, row in rows.items() if row["here"]} == {"vgg16"}
    assert rows["ldm-cin256-v2"]["size"] == 1_827_378_153
    shown = run("weights", "list").stdout
    assert re.search(r"vgg16 +extractor +~528 MB here +see upstream", shown)
    assert re.search(r"sd-v1-5 +backbone +\? missing +CreativeML OpenRAIL-M", shown)


def test_a_missing_file_has_a_path_and_exit_code_3() -> None:
    done = run("weights", "path", "vgg16")
    assert done.exit_code == 3
    assert done.stdout.strip() == str(weights.path("vgg16"))
    assert "solverbench weights fetch vgg16" in done.stderr
    assert run("weights", "verify", "vgg16").exit_code == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fetch", "vgg61"], "did you mean 'vgg16'"),
        (["fetch", "fid-coco-30k"], "Google Drive"),
        (["path", "x"], "unknown file 'x'"),
        (["convert", "/no/such/file"], "/no/such/file is missing"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], said: str) -> None:
    done = run("weights", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_dry_run_says_from_where_and_fetches_nothing(place: Path) -> None:
    done = run("weights", "fetch", "--dry-run", "ldm-cin256-v2", "fid-coco-30k")
    assert done.exit_code == 0
    assert "1.83 GB from https://ommer-lab.com/" in done.stdout
    assert not place.exists()


FIXTURES = {
    "edm-tiny-cond-ncsnpp-torch2.pkl": ("EDM network", "EDMPrecond, SongUNet (NCSN++)", 48_979),
    "baseline-tiny-cond-iddpm.pkl": ("EDM network", "iDDPMPrecond, DhariwalUNet (ADM)", 49_142),
    "r3gan-tiny-cifar10.pkl": ("R3GAN discriminator", "4 stages, 3 x 32 x 32 pixels", 19_308),
    "ldm-tiny-uncond-vq.ckpt": ("LDM", "UNet2DModel (32, 64) with VQModel", 702_499),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_a_published_file_and_what_it_is_converted_to_are_told(name: str, tmp_path: Path) -> None:
    kind, design, num_parameters = FIXTURES[name]
    path = fixture_file(name, tmp_path)
    facts = json.loads(run("show", path, "--json").stdout)
    assert facts["kind"].startswith(kind)
    assert (facts["architecture"], facts["parameters"]) == (design, num_parameters)
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    config = (
        Path(__file__).parents[1] / "data" / "backbones" / name.replace(".ckpt", ".config.yaml")
    )
    words = ("--config", config) if name.endswith(".ckpt") else ()
    done = run("weights", "convert", path, "--out", tmp_path / "made.safetensors", *words)
    assert done.exit_code == 0, done.output
    again = json.loads(run("show", tmp_path / "made.safetensors", "--json").stdout)
    before = again.get("published file sha256") or again["file_sha256"]
    assert before == facts["sha256"]
    card = (tmp_path / "made.md").read_text()
    assert facts["sha256"] in card
    assert "Licence of the weights: unknown" in card
    assert f"| parameters | {num_parameters:,} |" in card


def test_a_converted_edm_network_is_the_same_network(tmp_path: Path) -> None:
    from solverbench.backbones.edm_files import load_network

    path = fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path)
    assert run("weights", "convert", path).exit_code == 0
    (one, facts), (two, same) = load_network(path), load_network(path.with_suffix(".safetensors"))
    assert facts == same
    states = one.state_dict(), two.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_converted_discriminator_scores_the_same(tmp_path: Path) -> None:
    """Bit for bit, in both precisions: weights are stored as they were published."""
    from solverbench.published_discriminator import load_published

    path = fixture_file("r3gan-tiny-ffhq64.pkl", tmp_path)
    assert run("weights", "convert", path).exit_code == 0
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for precision in ("float32", "stored"):
        made = load(path.with_suffix(".safetensors"), precision)
        assert torch.equal(made(x), load_published(path, precision)(x))


def test_the_card_of_a_file_of_the_catalogue_names_licence_and_origin(place: Path) -> None:
    name = "edm-cifar10-32x32-uncond-vp"
    path = weights.path(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(fixture_file("edm-tiny-uncond-ddpmpp.pkl", place).read_bytes())
    assert run("weights", "convert", path).exit_code == 0
    card = path.with_suffix(".md").read_text()
    assert "CC BY-NC-SA 4.0" in card
    assert weights.item_of(name).origin in card


def test_a_folder_of_diffusers_is_told(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "data" / "backbones" / "sd-v1-tiny"
    shown = run("show", folder).stdout
    assert "Stable Diffusion, folder of diffusers" in shown
    assert re.search(r"sigma range +0\.0291672 to 14\.6146", shown)


def test_foreign_safetensors_and_statistics_are_told(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4).half()}, tmp_path / "x.safetensors")
    facts = json.loads(run("show", tmp_path / "x.safetensors", "--json").stdout)
    assert facts["kind"] == "safetensors file of another project"
    assert (facts["parameters"], facts["dtype"]) == (10, "float16, float32")
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert "statistics of the FID" in run("show", tmp_path / "fid.npz").stdout


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04...", b"\x80\x04]\x94.", b"\x00" * 99])
def test_what_is_no_weights_file_is_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for words in (("show", path), ("weights", "convert", path)):
        done = run(*words)
        assert done.exit_code == 2, done.output
        assert len(done.stderr.strip().splitlines()) == 1
        assert str(path) in done.stderr


def test_a_run_without_the_files_names_the_command_and_exits_with_3(tmp_path: Path) -> None:
    words = ("run", "smoke", "--backbone", "edm-cifar10", "--out", tmp_path / "runs")
    for more in ((), ("--dry-run",)):
        done = run(*words, *more)
        assert done.exit_code == 3, done.output
        assert "solverbench weights fetch edm-cifar10-32x32-uncond-vp" in done.stderr
        assert "fid-cifar10-32x32" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert "dpmpp-3m" in done.stdout or "DPM++" in done.stdout  # the dry run still lists the cells


def test_fetch_brings_what_the_backbone_needs_before_it_samples(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = registry.backbones.get("digits")
    monkeypatch.setattr(kind, "needs", (NAME,), raising=False)
    listed(monkeypatch, url=server.url)
    words = ("sample", "ddim", "--backbone", "digits", "--nfe", "2", "--seeds", "0-3")
    out = ("--out", tmp_path / "grid.png")
    assert run(*words, *out).exit_code == 3
    done = run(*words, *out, "--fetch")
    assert done.exit_code == 0, done.output
    assert weights.present(NAME)


def test_the_list_of_backbones_and_the_doctor_name_what_is_missing() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "backbones", "--json").stdout)}
    assert rows["edm-ffhq"]["missing"] == "edm-ffhq-64x64-uncond-vp"
    assert rows["digits"]["missing"] == ""
    assert "[missing: sd-v1-5]" in run("list", "backbones").stdout
    found = {row["what"]: row for row in json.loads(run("doctor", "--json").stdout)}
    assert not found["published files"]["good"]
    assert "solverbench weights fetch" in found["published files"]["detail"]
    assert all(found[name]["good"] for name in ("edm", "ldm", "sd", "digits"))
    assert not {"edm-ffhq", "ldm-bedroom", "sd15"} & set(found)  # none is tried


def foreign(folder: Path, **changes: object) -> Path:
    """A converted EDM network whose facts say something else."""
    network, facts = edm_files.load_network(fixture_file("edm-tiny-uncond-ddpmpp.pkl", folder))
    said = facts._asdict() | {"keywords": facts.keywords | changes}
    tensorfile.write(folder / "d.safetensors", edm_files.FORMAT, network.state_dict(), said)
    return folder / "d.safetensors"


def test_foreign_text_reaches_no_terminal_and_no_page(tmp_path: Path) -> None:
    """Control characters, lone surrogates, markup of the terminal and of the page, long ends."""
    evil = "\x1b[31m[/red] \ud800 | <b>&\n" + "x" * 10_000
    done = run("show", foreign(tmp_path, **{"a": evil, evil[:40]: 1}))
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\\ud800" in done.stdout
    assert len(done.stdout) < 3000
    facts = weights_facts(tmp_path / "d.safetensors")
    cell = converting._cell(facts["keywords"])
    assert "\n" not in cell
    assert r"\| \<b\>\&\\n" in cell


def test_facts_of_a_file_do_not_stand_for_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    said = {"kind": "EDM network, published pickle", "sha256": "0", "[/x]": 1}
    tensorfile.write(path, "solverbench-test-1", {"a": torch.zeros(2)}, said)
    facts = json.loads(run("show", path, "--json").stdout)
    assert facts["kind"] == "solverbench-test-1"
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run("show", path).exit_code == 0


def test_paths_that_cannot_be_and_unknown_zips_are_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "odd.zip"
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr("a", "b")
    data = bytearray(odd.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99  # the version that is needed
    odd.write_bytes(data)
    for words, why in (
        (("show", odd), "zip is damaged or of an unknown kind"),
        (("show", "a" * 5000), "File name too long"),
        (("weights", "convert", "."), "is a folder"),
        (("weights", "convert", "a" * 5000), "File name too long"),
        (("sample", "ddim", "--backbone", "edm", "--option", "weights=" + "a" * 5000), ""),
    ):
        done = run(*words)
        assert done.exit_code == 2, done.output
        assert why in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_faults_of_the_system_are_one_line() -> None:
    @click.command(cls=click.Command)
    def fails() -> None:
        raise PermissionError(13, "Permission denied", "/a/\x1b[31mb")

    group = Group("group", {"fails": fails})
    done = CliRunner().invoke(group, ["fails"])
    assert (done.exit_code, done.stderr) == (2, "error: /a/\\x1b[31mb: Permission denied\n")


def test_verify_says_that_nothing_is_here(place: Path) -> None:
    done = run("weights", "verify")
    assert (done.exit_code, done.stdout) == (0, f"no published file is in {place}\n")


def test_a_run_that_may_not_fetch_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(weights.OFFLINE[0], "1")
    words = ("run", "smoke", "--backbone", "edm-cifar10", "--out", tmp_path / "runs")
    done = run(*words, "--fetch")
    assert done.exit_code == 3, done.output
    assert "forbids connections" in done.stderr

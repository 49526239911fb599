"""What files say about a latent diffusion model is checked before anything is built from it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solverbench import tensorfile
from solverbench.backbones import settings
from solverbench.backbones.ldm_config import read_config
from solverbench.backbones.ldm_files import FORMAT, inspect_ldm, load_ldm, save_ldm
from solverbench.backbones.ldm_layout import RAW, of_shapes
from solverbench.backbones.settings import read_json
from solverbench.errors import SolverBenchError
from solverbench.inspecting import weights_facts
from tests.backbones.ldm_cases import MODELS, config_of, unpacked


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints, unpacked once."""
    return unpacked(tmp_path_factory.mktemp("ldm"))


@pytest.fixture(scope="module")
def converted(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "made.safetensors"
    save_ldm(path, load_ldm(files[MODELS[1]], config_of(MODELS[1])))
    return path


@pytest.fixture(scope="module")
def diffusers_folder(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unconditional model, as diffusers writes it."""
    folder, loaded = (
        tmp_path_factory.mktemp("folder"),
        load_ldm(files[MODELS[0]], config_of(MODELS[0])),
    )
    parts: list[tuple[str, Any]] = [("unet", loaded.unet), ("vqvae", loaded.first_stage)]
    for name, part in parts:
        part.save_pretrained(folder / name)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    facts = {"beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}
    scheduler.write_text(json.dumps(facts | {"beta_schedule": "scaled_linear"}))
    return folder


WRONG: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a list": (("layout",), [1], "layout: "),
    "no unet": (("layout", "unet"), {}, "a network is none of UNet2DModel"),
    "no first stage": (("layout", "first_stage"), None, "first_stage: "),
    "another network": (("layout", "first_stage", "_class_name"), "UNet2DModel", "none of VQModel"),
    "deep": (("layout", "unet", "layers_per_block"), 10**8, "which is no setting"),
    "a deep stage": (("layout", "first_stage", "layers_per_block"), 10**8, "which is no setting"),
    "deep inside": (("layout", "unet", "transformer_layers_per_block"), 10**8, "no setting"),
    "wide": (("layout", "unet", "block_out_channels"), [32] * 999, "which is no setting"),
    "no widths": (("layout", "unet", "block_out_channels"), 5, "block_out_channels is 5"),
    "an object": (("layout", "unet", "act_fn"), {"a": 1}, "'act_fn' is"),
    "codes": (("layout", "first_stage", "num_vq_embeddings"), 10**15, "'num_vq_embeddings' is"),
    "beta beyond 1": (("layout", "beta_last"), 5.0, "beta_last: "),
    "beta nan": (("layout", "beta_first"), float("nan"), "beta_first: "),
    "betas the wrong way": (("layout", "beta_first"), 0.5, "beta_first must be below"),
    "no scale": (("layout", "scale"), 0, "scale: "),
    "a text as scale": (("layout", "scale"), "x", "scale: "),
    "rows": (("layout", "num_rows"), 10**12, "num_rows: "),
    "no rows": (("layout", "num_rows"), 0, "belong to a UNet2DConditionModel"),
    "a huge side": (("layout", "unet", "sample_size"), 10**6, "sample_size is 1000000; wanted"),
    "a type": (("dtype",), "nn", "dtype: "),
    "a count": (("num_parameters",), "x", "num_parameters: "),
    "a checksum": (("file_sha256",), 5, "file_sha256: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_facts_of_a_converted_file_are_one_line(
    case: str, converted: Path, tmp_path: Path
) -> None:
    place, value, said = WRONG[case]
    tensors, found = tensorfile.read(converted, FORMAT)
    facts = copy.deepcopy(found)
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "wrong.safetensors"
    tensorfile.write(path, FORMAT, tensors, facts)
    readers: tuple[Callable[[Path], object], ...] = (load_ldm, inspect_ldm, weights_facts)
    for read in readers:
        with pytest.raises(SolverBenchError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("unet", {"layers_per_block": 10**8}, "'layers_per_block' is 100000000"),
        ("unet", {"_class_name": "Evil"}, "none of UNet2DModel"),
        ("unet", {"sample_size": "x"}, "sample_size is 'x'"),
        ("vqvae", {"layers_per_block": 10**8}, "'layers_per_block' is 100000000"),
        ("vqvae", {"_class_name": "AutoencoderKL", "scaling_factor": "x"}, "scale: "),
        ("vqvae", {"_class_name": "AutoencoderKL", "scaling_factor": 0}, "scale: "),
        ("scheduler", {"beta_end": 5.0}, "beta_last: "),
        ("scheduler", {"beta_start": None}, "beta_first: "),
    ],
)
def test_wrong_settings_of_a_folder_are_one_line(
    diffusers_folder: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    path = diffusers_folder / file / name
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        for read in (load_ldm, inspect_ldm):
            with pytest.raises(SolverBenchError, match=said) as caught:
                read(diffusers_folder)
            assert "\n" not in str(caught.value)
    finally:
        path.write_text(before)
    assert inspect_ldm(diffusers_folder).weights == "diffusers"


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!bool zz", "!!timestamp zz", "!!float zz", "[" * 5000]
)
def test_a_config_that_is_no_yaml_is_one_line(value: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"{config_of(MODELS[0]).read_text()}\nodd: {value}\n")
    with pytest.raises(SolverBenchError, match=r"odd\.yaml: no YAML: ") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_devices_and_large_files_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.yaml").write_text("a" * (2 << 20))
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "long.yaml"):
        with pytest.raises(SolverBenchError, match="is no config of a latent diffusion model"):
            read_config(path)
    monkeypatch.setattr(settings, "LARGEST_JSON", 10)
    (tmp_path / "long.json").write_text('{"a": "bcdefg"}')
    with pytest.raises(SolverBenchError, match="has more than 10 bytes"):
        read_json(tmp_path / "long.json")
    with pytest.raises(SolverBenchError, match="is missing"):
        read_json(Path("/dev/zero"))


def test_what_the_system_refuses_is_one_line(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for read in (load_ldm, inspect_ldm, read_config):
        with pytest.raises(SolverBenchError, match="cannot be read: File name too long"):
            read(Path("x" * 5000))

    def refused(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SolverBenchError, match="cannot be read: Permission denied"):
        inspect_ldm(files[MODELS[0]])


def test_a_name_with_a_large_number_is_no_long_search() -> None:
    """A billion input blocks would be looked for one after the other."""
    shapes = {f"{RAW}input_blocks.{i}.0.weight": (32, 3, 3, 3) for i in (0, 10**9)}
    with pytest.raises(SolverBenchError, match="cannot be told from its tensors"):
        of_shapes(shapes, None)


def test_limits_hold_for_whole_networks_and_let_known_ones_pass() -> None:
    known = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    settings.check_settings(known)
    for depth in (64, [64, 1]):
        with pytest.raises(ValueError, match="it asks for 512 blocks"):
            settings.check_settings(known | {"transformer_layers_per_block": depth})

"""What evaluate says of rows: equal numbers, ties, blocks, and that records say the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from solverbench.backbones.extractor import DigitsExtractor
from solverbench.benchmark import feature_cache
from solverbench.benchmark import metrics as m
from solverbench.benchmark.features import reference_of
from solverbench.benchmark.measuring import NEIGHBOURS, over_blocks
from solverbench.benchmark.metrics.kernel import KD
from solverbench.benchmark.metrics.mind import MIND
from solverbench.benchmark.metrics.neighbours import Coverage, Density, Precision, Recall
from solverbench.benchmark.sides import Choice, Side
from solverbench.images import Features
from tests.measuring import call, plain, rows


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feature_cache.FOLDER, str(tmp_path / "features"))


def test_neighbours_use_equal_numbers_and_give_what_records_give(tmp_path: Path) -> None:
    done = call("evaluate", plain(tmp_path), "--reference", "digits", "--json")
    found = {entry["metric"]: entry for entry in json.loads(done.stdout)["metrics"]}
    own = DigitsExtractor().reference()
    features = Features(rows(40, 2), rows(40, 2)[:, :0])
    for name, metric in zip(
        NEIGHBOURS, (Precision(), Recall(), Density(), Coverage()), strict=True
    ):
        expected = metric.measure(generated=features, reference=own)
        entry = found[name]
        assert (entry["value"], entry["se"]) == (expected.value, expected.se)
        assert (entry["se_method"], entry["flags"]) == (expected.se_method, list(expected.flags))
        assert (entry["num_generated"], entry["num_reference"]) == (40, 40)
    assert found["coverage"]["ceiling"] == m.coverage_ceiling(40, 40, 5)
    text = call("evaluate", plain(tmp_path), "--reference", "digits").output
    assert "40 rows a side, first rows of the reference one; --unequal keeps all" in text


def test_a_reference_sorted_by_class_is_not_cut_to_its_first_classes(tmp_path: Path) -> None:
    """Files may be in any order: the first rows of this one are all alike."""
    rng = torch.Generator().manual_seed(0)
    classes = 20.0 * torch.arange(10).repeat_interleave(100)[:, None]
    data = classes + torch.randn(1000, 4, generator=rng)
    np.savez(tmp_path / "data.npz", features=data.numpy())
    drawn = torch.randperm(1000, generator=rng)[:200]
    save_file({"features": data[drawn] + 0.01}, tmp_path / "x.safetensors")
    words = ("--reference", tmp_path / "data.npz", "--metrics", "precision", "--json")
    done = call("evaluate", tmp_path / "x.safetensors", *words)
    (found,) = json.loads(done.stdout)["metrics"]
    assert found["num_reference"] == 200
    assert found["value"] > 0.8  # one in five with the first rows


@pytest.mark.parametrize("convention", ["prdc", "kynkaanniemi"])
def test_ties_count_by_the_convention_and_shares_have_errors(
    convention: str, tmp_path: Path
) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 3, (60, 3), generator=rng).float() for _ in range(2))
    save_file({"features": x}, tmp_path / "x.safetensors")
    save_file({"features": y}, tmp_path / "y.safetensors")
    options = ("--metrics", ",".join(NEIGHBOURS), "--convention", convention, "--k", "3", "--json")
    words = ("evaluate", tmp_path / "x.safetensors", "--reference", tmp_path / "y.safetensors")
    found = {e["metric"]: e for e in json.loads(call(*words, *options).stdout)["metrics"]}
    shares, filled = m.neighbour_metrics(generated=x, reference=y, k=3, convention=convention)
    for name, expected in {**vars(shares), **vars(filled)}.items():
        if name in NEIGHBOURS:
            assert found[name]["value"] == expected.value
            assert found[name]["se"] is not None


def test_blocks_of_rows_are_measured_one_by_one(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(301, 4, generator=rng), torch.randn(200, 4, generator=rng)
    save_file({"features": x}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "y.npz", features=y.numpy())
    words = ("evaluate", tmp_path / "x.safetensors", "--reference", tmp_path / "y.npz")
    words = (*words, "--metrics", "fd,coverage", "--blocks", "3")
    found = {e["metric"]: e for e in json.loads(call(*words, "--json").stdout)["metrics"]}
    parts = torch.split(x, 100)[:3]
    values = [m.frechet_distance(generated=part, reference=y).value for part in parts]
    blocks = found["fd"]["blocks"]
    assert blocks["values"] == pytest.approx(values, rel=1e-9)  # the reference as rows or moments
    assert (blocks["num"], blocks["rows"]) == (3, 100)
    assert blocks["mean"] == pytest.approx(np.mean(values), rel=1e-9)
    assert blocks["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert blocks["min of 3"] == min(blocks["values"])
    assert found["coverage"]["blocks"]["rows"] == 100
    assert f"min of 3: {min(values):.4g}" in call(*words).output
    side = Side("x", x, None, "", "")
    other = Side("y", y, m.Statistics().update(y).moments(), "", "")
    one = over_blocks(["coverage"], side, other, Choice(blocks=3)).get("coverage")
    assert one is not None
    assert {block.num_reference for block in one.blocks} == {100}


@pytest.mark.parametrize("extractor", ["digits", "inception-edm"])
def test_kid_and_mind_are_metrics_of_records_too(extractor: str) -> None:
    features = Features(rows(40, 2), rows(40, 2)[:, :0])
    other = reference_of(Features(rows(60, 3), rows(60, 3)[:, :0]), "drawn")
    sides = {"generated": rows(40, 2), "reference": rows(60, 3)}
    distance = m.kernel_distance(**sides)
    kid = KD().measure(generated=features, reference=other)
    assert (kid.value, kid.se, kid.facts["std"]) == (distance.value, None, distance.std)
    assert MIND().compute(generated=features, reference=other) == m.mind(**sides).value
    assert KD().label(extractor) == {"inception-edm": "KID"}.get(extractor, "KD[digits]")
    bare = replace(other, features=None)
    for metric in (KD(), MIND()):
        with pytest.raises(ValueError, match="needs rows"):
            metric.measure(generated=features, reference=bare)

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solverbench
from solverbench.benchmark import metrics as m
from solverbench.benchmark.metrics import statistics
from solverbench.errors import SolverBenchError
from solverbench.images import BLOCK, moments

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"


def rows(seed: int, num: int = 101, dim: int = 6, offset: float = 300) -> Tensor:
    """Float32 rows far from zero, like pooled features."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=rng) + offset


def same(a: m.Moments, b: m.Moments, rel: float = 1e-12) -> bool:
    """Equal but for float64 rounding."""
    return (
        a.num == b.num
        and torch.allclose(a.mu, b.mu, rtol=rel, atol=0)
        and torch.allclose(a.sigma, b.sigma, rtol=0, atol=rel * float(b.sigma.abs().max()))
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_statistics_merged_from_parts_equal_those_of_the_whole(sizes: list[int], seed: int) -> None:
    """Every part is a process of its own; parts of one row are allowed."""
    whole = rows(seed, sum(sizes) + 2)
    parts = torch.split(whole, [*sizes, 2])
    merged = m.Statistics()
    for part in parts:
        merged.merge(m.Statistics().update(part))
    streamed = m.Statistics()
    for part in parts:
        streamed.update(part)
    expected = moments(whole)
    assert same(merged.moments(), expected)
    assert same(streamed.moments(), expected)
    np.testing.assert_allclose(  # 300 squared costs five of sixteen digits without a shift
        merged.moments().sigma, np.cov(whole.double().numpy().T), rtol=0, atol=1e-11
    )


def test_merging_far_sets_and_empty_ones_loses_nothing() -> None:
    a, b = rows(0), rows(1, 40, offset=-5000)
    expected = moments(torch.cat([a, b]))
    for first, second in ((a, b), (b, a)):
        both = m.Statistics().merge(m.Statistics().update(first)).merge(m.Statistics())
        both.merge(m.Statistics().update(second))
        assert same(both.moments(), expected, rel=1e-10)  # shifts are 5300 apart


def test_merging_leaves_the_other_side_as_it_was() -> None:
    other = m.Statistics().update(rows(0))
    before = other.moments()
    fresh = m.Statistics().merge(other)
    fresh.update(rows(1))
    assert same(other.moments(), before)
    assert other.num == 101


def test_statistics_travel_between_processes() -> None:
    """As multiprocessing and torch.distributed send objects."""
    sent = pickle.loads(pickle.dumps(m.Statistics().update(rows(0))))
    assert same(sent.update(rows(1)).moments(), moments(torch.cat([rows(0), rows(1)])))


def test_moments_are_those_of_the_stream_bit_for_bit() -> None:
    x = rows(0, 2 * BLOCK + 5, 3)
    a, b = moments(x), m.Statistics().update(x).moments("plain")
    assert torch.equal(a.mu, b.mu)
    assert torch.equal(a.sigma, b.sigma)
    assert (a.extractor, b.extractor) == ("", "plain")


@pytest.mark.parametrize("name", ["gauss_unequal", "relu_equal", "n_lt_d"])
def test_statistics_equal_those_that_edm_accumulates(name: str) -> None:
    with np.load(GOLDENS / f"{name}.npz") as file:
        for side in {"real", "fake"} & {k[3:] for k in file.files if k.startswith("mu_")}:
            found = moments(torch.from_numpy(file[side]))
            np.testing.assert_allclose(found.mu, file[f"mu_{side}"], rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(found.sigma, file[f"sigma_{side}"], rtol=0, atol=1e-12)


def test_unusable_rows_are_refused_in_one_line() -> None:
    held = m.Statistics().update(rows(0))
    with pytest.raises(ValueError, match="features have 5 dimensions, those before 6"):
        held.update(rows(0)[:, :5])
    with pytest.raises(ValueError, match="of 6 and 5 dimensions cannot be merged"):
        held.merge(m.Statistics().update(rows(0)[:, :5]))
    with pytest.raises(ValueError, match="1 of 101 feature rows hold NaN"):
        held.update(rows(0).index_fill(0, torch.tensor([7]), torch.nan))
    with pytest.raises(ValueError, match=r"M >= 1; got \(0, 6\)"):
        held.update(rows(0)[:0])
    with pytest.raises(ValueError, match="at least two rows; got 0"):
        m.Statistics().moments()


def test_what_is_written_is_read_again_and_edm_can_read_it(tmp_path: Path) -> None:
    path, x = tmp_path / "deep" / "cats.npz", rows(0)
    m.write_statistics(path, m.Statistics().update(x).moments("plain"), features=x)
    found = m.read_statistics(path)
    expected = moments(x)
    assert torch.equal(found.mu, expected.mu)
    assert torch.equal(found.sigma, expected.sigma)
    assert (found.num, found.extractor) == (101, "plain")
    features = m.read_features(path)
    assert features is not None
    assert torch.equal(features, x)
    with np.load(path, allow_pickle=False) as file:  # as EDM's code does
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert int(file["format_version"]) == statistics.FORMAT_VERSION
    assert sorted(p.name for p in path.parent.iterdir()) == ["cats.npz"]
    distance = m.frechet_distance(generated=x, reference=found)
    assert distance.value <= 1e-10


def test_files_of_edm_hold_two_arrays_and_say_no_more(tmp_path: Path) -> None:
    path, x = tmp_path / "ref.npz", moments(rows(0))
    np.savez(path, mu=x.mu.numpy(), sigma=x.sigma.numpy())
    found = m.read_statistics(path)
    assert (found.num, found.extractor) == (0, "")
    assert m.read_features(path) is None


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_files_of_adm_are_read_lazily_and_nothing_in_them_runs(tmp_path: Path) -> None:
    """A trap stands where ADM keeps its images: reading or running it would show."""
    path, x = tmp_path / "virtual.npz", moments(rows(0))
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    mu, sigma = x.mu.float().numpy(), x.sigma.float().numpy()
    np.savez(path, arr_0=trap, mu_s=trap, mu=mu, sigma=sigma)
    found = m.read_statistics(path)
    assert found.mu.dtype == found.sigma.dtype == torch.float64
    assert torch.equal(found.mu, x.mu.float().double())
    np.savez(path, mu=trap, sigma=sigma)
    with pytest.raises(SolverBenchError, match="allow_pickle"):
        m.read_statistics(path)
    assert not (tmp_path / "sprung").exists()


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "it has no array 'sigma'; it holds mu"),
        ({"arr_0": EYE}, "it has no array 'mu'; it holds arr_0"),
        ({"mu": np.zeros(2), "sigma": EYE}, r"got \(2,\) and \(3, 3\)"),
        ({"mu": np.zeros((3, 1)), "sigma": EYE}, r"got \(3, 1\) and \(3, 3\)"),
        ({"mu": np.full(3, np.nan), "sigma": EYE}, "NaN or infinity"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)}, "NaN or infinity"),
        ({"mu": np.zeros(3), "sigma": 0 * EYE}, "trace of sigma is not positive"),
        ({"mu": np.zeros(3), "sigma": EYE + np.triu(EYE * 0 + 1e-5, 1)}, "not symmetric"),
        ({"mu": np.zeros(3), "sigma": EYE, "format_version": 2}, "layout 2 is newer"),
        ({"mu": np.array(["a"]), "sigma": EYE}, "could not convert"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, arrays, message: str) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, **arrays)
    with pytest.raises(SolverBenchError, match=message) as caught:
        m.read_statistics(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_rounding_in_a_file_is_no_asymmetry(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(3), sigma=EYE + np.triu(EYE * 0 + 1e-7, 1))
    assert m.read_statistics(path).sigma.shape == (3, 3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x04K\x01.", b"plain text"])
def test_torn_and_foreign_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ref.npz"
    path.write_bytes(content)
    for read in (m.read_statistics, m.read_features):
        with pytest.raises(SolverBenchError, match=r"ref\.npz") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_cut_file_a_lone_array_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path, lone = tmp_path / "ref.npz", tmp_path / "lone.npy"
    m.write_statistics(path, moments(rows(0)))
    path.write_bytes(path.read_bytes()[:-40])
    np.save(lone, EYE)
    for bad, message in (
        (path, "ref.npz"),
        (lone, "single array"),
        (tmp_path / "none.npz", "cannot read .*none.npz: No such file"),
        (tmp_path, "cannot read"),
    ):
        with pytest.raises(SolverBenchError, match=message):
            m.read_statistics(bad)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    m.write_statistics(path, moments(rows(0)))
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # inside sigma or mu; archives carry a checksum of each array
    path.write_bytes(bytes(data))
    with pytest.raises(SolverBenchError, match="CRC"):
        m.read_statistics(path)


def test_moments_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    with pytest.raises(ValueError, match="trace"):
        m.write_statistics(path, moments(torch.ones(5, 3)))
    assert not path.exists()

import pytest

from solverbench.byte_sizes import num_bytes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (1, 1),
        (2e9, 2_000_000_000),
        ("1500", 1500),
        ("2e9", 2_000_000_000),
        ("6GB", 6_000_000_000),
        ("1.5 kB", 1500),
        (" 512 mb ", 512_000_000),
        ("1GiB", 2**30),
        ("0.5KiB", 512),
        ("2tib", 2**41),
        ("10B", 10),
    ],
)
def test_sizes_are_read_as_people_write_them(written: object, meant: int) -> None:
    assert num_bytes(written) == meant


@pytest.mark.parametrize(
    "written", [0, -1, "0.2", "", "GB", "6XB", "6 G iB", "-1GB", "inf", "1e99", float("nan"), True]
)
def test_anything_else_is_refused_with_what_is_allowed(written: object) -> None:
    with pytest.raises(ValueError, match=r"is no size of memory; give bytes.*6GB") as caught:
        num_bytes(written)
    assert "\n" not in str(caught.value)

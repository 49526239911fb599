"""Every table counted again: literals added up from the paper's text, not from the data files.

A block is rows under the same heads: how many values each row has, the sum of each row, and the
sums of the columns over the rows that have all of them. Sums keep the printed decimals.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice

import pytest

from solverbench.baselines.published import TABLES, Published, load_published

Block = tuple[list[int], str, str]
RESULTS = [4] * 11 + [1]  # eleven methods at four NFE, one teacher
BLOCKS: dict[str, list[Block]] = {
    "2a": [
        (
            RESULTS,
            "66.45 64.61 56.20 45.88 42.79 29.52 48.32 17.85 13.59 11.39 10.95 2.03",
            "245.06 83.48 47.93 31.08",
        ),
        (
            RESULTS,
            "70.51 73.98 66.48 45.89 45.68 37.11 59.66 30.68 21.31 20.82 17.18 2.60",
            "279.63 103.74 63.77 42.16",
        ),
        (
            RESULTS,
            "46.01 50.46 40.43 26.20 54.57 26.28 62.50 18.49 13.69 13.37 11.74 2.16",
            "200.24 84.23 47.77 31.50",
        ),
    ],
    "2b": [
        (
            RESULTS,
            "81.12 64.79 27.78 157.90 46.38 183.66 27.84 23.09 54.44 22.26 18.41 3.06",
            "335.24 188.68 102.23 81.52",
        ),
        (
            RESULTS,
            "51.44 39.64 33.04 113.45 40.03 129.22 32.13 23.00 17.58 21.27 18.74 4.10",
            "225.26 141.11 85.37 67.80",
        ),
    ],
    "2c": [([4] * 7, "59.79 56.06 54.62 51.31 49.94 49.71 49.46", "112.93 90.81 84.77 82.38")],
    "3": [
        (
            [8] * 4,
            "39.945 11.449 47.485 21.043",
            "70.86 0.680 20.92 0.282 15.81 0.203 11.08 0.087",
        )
    ],
    "4": [([2] * 4, "10.816 7.987 9.812 7.714", "35.74 0.589")],
    "5": [([4] * 2, "20.82 35.95", "25.93 15.02 8.46 7.36")],
    "6": [([3], "19.74", "7.87 6.49 5.38")],
    "7a": [([4] * 7, "46.01 18.49 13.69 13.37 11.74 14.25 12.72", "66.39 28.40 18.67 16.81")],
    "7b": [([4] * 7, "70.51 30.68 21.31 20.82 17.18 27.89 19.24", "118.69 43.00 24.85 21.09")],
    "8": [([5] * 2, "11.48 9.21", "13.25 1.80 1.39 2.38 1.87")],
    "9": [([5] * 2, "4.775 17.04", "4.502 3.928 5.373 5.011 3.001")],
    "10": [([4] * 3, "31.31 81.51 20.82", "73.26 34.46 15.28 10.64")],
    "11": [([3] * 3, "495.45 214.22 261.77", "655.71 251.03 64.70")],
    "12a": [([4] * 4, "12.99 13.08 26.84 27.02", "30.23 30.28 9.70 9.72")],
    "12b": [([2] * 5, "6.42 6.46 13.92 11.62 11.69", "33.16 16.95")],
    "13a": [([2] * 8, "10.93 10.47 3.52 3.18 3.32 3.44 3.14 5.98", "20.98 23")],
    "13b": [
        ([1] * 5, "9.19 5.03 4.46 4.32 1", "24.00"),  # LD3: four FIDs, its time printed once
        ([2] * 5, "9.47 6.94 6.29 6.66 9.06", "27.42 11.0"),
    ],
    "14a": [([4] * 6, "180 275 275 430 795 795", "515 630 745 860")],
    "14b": [([4] * 6, "190 420 260 580 910 330", "530 625 720 815")],
    "15a": [([4] * 3, "102 109 102", "53 71 86 103")],
    "15b": [([4] * 3, "198 213 198", "115 139 165 190")],
    "16": [([4] * 2, "2.01 2.00", "0.72 0.91 1.10 1.28")],
    "17": [([5], "13.95", "2.03 2.60 2.16 3.06 4.10")],
    "18": [([4], "49.46", "14.10 12.08 11.80 11.48")],
}
COUNTS = (  # rows and values
    *("2a 36 135", "2b 24 90", "2c 7 28", "3 4 32", "4 4 8", "5 2 8", "6 1 3", "7a 7 28"),
    *("7b 7 28", "8 2 10", "9 2 10", "10 3 12", "11 3 9", "12a 4 16", "12b 5 10", "13a 8 16"),
    *("13b 10 15", "14a 6 24", "14b 6 24", "15a 3 12", "15b 3 12", "16 2 8", "17 1 5", "18 1 4"),
)
PIXEL, LATENT = (4, 6, 8, 10), (4, 5, 6, 7)
HEADS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("2a", "5", "7a", "7b", "10", "14a", "15a"), PIXEL),
    **dict.fromkeys(("2b", "14b", "15b", "16"), LATENT),
    "3": (4, 4, 6, 6, 8, 8, 10, 10),
    "6": (4, 4, 4),
    "8": (4, 4, 4, 4, 4),
    "9": (1, 4, 4, 4, 20),
    "11": (1, 2, 4),
    "12a": (4, 4, 10, 10),
    "12b": (4, 6),
    "17": (20, 20, 20, 20, 10),
    "18": (5, 6, 7, 8),
}
TRAINED = {
    "10": ["S4S LMS", "S4S LMS + PC", "GS"],
    "11": ["DPM", "GS", "GAS"],
    "12a": ["GS"] * 4,
    "12b": ["GAS"] * 5,
    "13a": ["CD", "PD", "S4S-Alt", "S4S", "LD3", "GS", "GS", "GAS"],
    "13b": ["LD3"] * 5 + ["GS"] * 4 + ["GAS"],
    "14a": ["GS"] * 3 + ["GAS"] * 3,
    "14b": ["GS"] * 3 + ["GAS"] * 3,
    "15a": ["GS", "GAS", "LD3"],
    "15b": ["GS", "GAS", "LD3"],
    "16": ["UniPC(3M)", "GS"],
}
TABLE_2 = [
    *("DPM++ (3M)", "UniPC (3M)", "iPNDM (3M)", "UniPC [GITS]", "UniPC [DMN]", "iPNDM [GITS]"),
    *("iPNDM [DMN]", "Best LD3", "S4S Alt", "GS", "GAS", "Teacher"),
]
METHODS = {
    "2a": TABLE_2 * 3,
    "2b": TABLE_2 * 2,
    "2c": ["iPNDM (2M)", "iPNDM [GITS]", "Best LD3", "S4S", "GS", "GAS", "Teacher"],
    "3": ["S4S", "Our"] * 2,
    "4": ["GS", "GAS"] * 2,
    "5": ["w/ theory", "w/o theory"],
    "7a": ["DPM-Solver++", "Best LD3", "S4S Alt", "GS", "GAS", "GS'", "GAS'"],
    "7b": ["DPM-Solver++", "Best LD3", "S4S Alt", "GS", "GAS", "GS'", "GAS'"],
    "8": ["GS", "GAS"],
    "17": ["UniPC"],
    "18": ["IPNDM(2M) [GITS]"],
    **TRAINED,
}


def blocks(table: str) -> Iterator[tuple[list[list[Published]], str, str]]:
    values = iter(load_published(table))
    for widths, rows, columns in BLOCKS[table]:
        yield [list(islice(values, width)) for width in widths], rows, columns
    assert not list(values)


def rows(table: str) -> list[list[Published]]:
    return [row for found, *_ in blocks(table) for row in found]


def total(values: Sequence[Published]) -> str:
    return str(sum(Decimal(p.printed) for p in values))


@pytest.mark.parametrize("line", COUNTS)
def test_a_table_has_as_many_rows_and_values_as_in_print(line: str) -> None:
    table, num_rows, num_values = line.split()
    assert len(load_published(table)) == int(num_values)
    assert [len(row) for row in rows(table)] == [w for block in BLOCKS[table] for w in block[0]]
    assert len(rows(table)) == int(num_rows)


def test_no_table_is_forgotten_and_none_added() -> None:
    assert tuple(BLOCKS) == tuple(line.split()[0] for line in COUNTS) == TABLES
    assert len(load_published()) == 547


@pytest.mark.parametrize("table", BLOCKS)
def test_rows_and_columns_add_up_to_the_sums_of_print(table: str) -> None:
    for found, row_sums, column_sums in blocks(table):
        width = max(len(row) for row in found)
        full = [row for row in found if len(row) == width]
        assert [total(row) for row in found] == row_sums.split()
        assert [total([row[i] for row in full]) for i in range(width)] == column_sums.split()


@pytest.mark.parametrize("table", HEADS)
def test_a_row_has_the_nfe_of_its_heads(table: str) -> None:
    full = [row for row in rows(table) if len(row) == len(HEADS[table])]
    assert full
    assert {tuple(p.nfe for p in row) for row in full} == {HEADS[table]}


@pytest.mark.parametrize("table", METHODS)
def test_a_row_is_of_one_method_in_the_order_of_print(table: str) -> None:
    found = [{p.method for p in row} for row in rows(table)]
    assert found == [{method} for method in METHODS[table]]


def test_columns_of_a_table_may_be_methods() -> None:
    assert [p.method for p in load_published("6")] == [
        "GS",
        "GAS (traditional)",
        "GAS (relativistic)",
    ]
    heads = ["CD, NFE=1", "CD, NFE=4", "GS, NFE=4", "GAS, NFE=4", "Our teacher"]
    assert [p.method for p in load_published("9")] == heads * 2


def test_the_text_to_image_table_has_a_teacher_for_each_student() -> None:
    found = rows("2c")
    assert [[p.nfe for p in row] for row in found] == [[4, 5, 6, 7]] * 6 + [[5, 6, 7, 8]]


def test_times_of_table_13_stand_beside_fids() -> None:
    nfes = [[p.nfe for p in row] for row in rows("13a")]
    assert nfes == [[n, n] for n in (2, 8, 7, 10, 10, 6, 10, 4)]
    own = rows("13b")
    assert [p.nfe for p, *_ in own] == [4, 5, 6, 7, None, 4, 5, 6, 7, 4]
    pairs = [*rows("13a"), *own[5:]]
    assert {tuple(p.metric for p in row) for row in pairs} == {("fid", "train-time")}

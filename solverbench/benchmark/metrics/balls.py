"""Points in nearest-neighbour balls, counted exactly and in bounded memory.

The ball of a row reaches to its k-th nearest other row of the same set. Squared distances come
from a float32 matrix product with a proven bound on their error. Pairs that the bound cannot
decide, ties and duplicates above all, are settled by ``squared_distances``, whose result depends
on the two rows alone. So counts depend neither on block sizes nor on the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PAIR = 128  # bytes for a pair of rows, in a piece where every pair must be settled
VECTOR = 128  # bytes for a row throughout: its norm, radius, hash, marks
ROW = 40  # bytes for each number of a row at hand: shifted, rounded, or read as an integer
DECIDED = 128  # roundings beside those of a product's sum, see Distances
MOST_ROWS = 2048  # longer blocks and tiles make no product quicker
MOST_PAIRS = 2**18  # a piece should stay in the processor's cache
MOST_VALUES = 2**17  # likewise the rows of pairs settled at once
LARGEST = 1e150  # of a feature: squares of larger ones overflow in float64


@dataclass(frozen=True)
class Hits:
    """How points of one set lie in the balls of another.

    Attributes:
        points: points inside at least one ball.
        balls: balls holding at least one point.
        pairs: pairs of a ball and a point inside it.
    """

    points: int
    balls: int
    pairs: int


def hits(points: Tensor, centres: Tensor, k: int, *, strict: bool, max_memory: int) -> Hits:
    """Count points in the balls of centres.

    Args:
        points: (M, D), finite, any floating type.
        centres: (N, D), finite, N > k.
        k: neighbours that a ball reaches to; duplicates count, the row itself does not.
        strict: whether a point on a ball's surface is outside.
        max_memory: bytes beside the two sets; changes no count.

    Raises:
        ValueError: where max_memory is too little.
    """
    sizes = plan(max_memory, max(len(points), len(centres)), points.shape[1])
    with torch.no_grad(), full_float32():
        x, y = PointSet.of(points, sizes), PointSet.of(centres, sizes)
        reach, tally = radii(y, k, sizes), Tally.empty(x, y)
        for piece in Distances.between(x, y, sizes).pieces():
            tally.add(piece.rows, slice(None), piece.inside(reach, strict))
    return tally.hits()


def mutual_hits(
    points: Tensor, centres: Tensor, k: int, *, strict: bool, max_memory: int
) -> tuple[Hits, Hits]:
    """``hits`` and ``hits`` with the sets swapped, for three quarters of the time; M > k too."""
    sizes = plan(max_memory, max(len(points), len(centres)), points.shape[1])
    with torch.no_grad(), full_float32():
        x, y = PointSet.of(points, sizes), PointSet.of(centres, sizes)
        around_x, around_y = radii(x, k, sizes), radii(y, k, sizes)
        there, back = Tally.empty(x, y), Tally.empty(y, x)
        for piece in Distances.between(x, y, sizes).pieces():
            there.add(piece.rows, slice(None), piece.inside(around_y, strict))
            inside = piece.inside(around_x[piece.rows, None], strict)
            back.add(slice(None), piece.rows, inside.T)
    return there.hits(), back.hits()


@dataclass(frozen=True)
class Plan:
    """Sizes that keep all temporary memory within a limit.

    Attributes:
        block: rows whose products with all columns are held.
        tile: rows brought into working form at once.
        piece: rows of a block that are compared at once.
        settled: pairs that are settled at once.
    """

    block: int
    tile: int
    piece: int
    settled: int


def plan(max_memory: int, num: int, dim: int) -> Plan:
    """Share a limit in bytes among temporaries, for two sets of at most ``num`` rows of ``dim``.

    Raises:
        ValueError: where even single rows need more.
    """
    quarter = (max_memory - 2 * VECTOR * num) // 4
    sizes = Plan(
        block=min(MOST_ROWS, 2 * quarter // (8 * num + ROW * dim)),
        tile=min(MOST_ROWS, quarter // (ROW * dim)),
        piece=min(1 + MOST_PAIRS // num, quarter * 3 // 4 // (PAIR * num)),
        settled=min(1 + MOST_VALUES // dim, quarter // 4 // (ROW * dim)),
    )
    if min(sizes.block, sizes.tile, sizes.piece, sizes.settled) < 1:
        least = 2 * VECTOR * num + 4 * max(PAIR * num * 4 // 3 + 4, 4 * ROW * dim)
        raise ValueError(
            f"max_memory={max_memory} bytes are too few for {num} rows of {dim} features; "
            f"give {least} or more."
        )
    return sizes


@contextmanager
def full_float32(kind: Literal["matmul", "conv"] = "matmul") -> Iterator[None]:
    """No TF32 or bfloat16 in matrix products or convolutions; settings are put back."""
    owner = {"matmul": torch.backends.cuda, "conv": torch.backends.cudnn}[kind]
    backends = [getattr(one, kind) for one in (owner, torch.backends.mkldnn)]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def ranges(num: int, step: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most ``step`` from ``start`` to ``num``."""
    for low in range(start, num, step):
        yield slice(low, min(low + step, num))


def sum_of_squares(values: Tensor) -> Tensor:
    """(P,) sums over the rows of (P, D), float64, added by halves; overwrites them.

    Every operation is elementwise and correctly rounded, so a row gives the same bits among any
    others and on any device; a library's sum does not.
    """
    values.mul_(values)
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        rest = values[:, half:]
        values = values[:, :half]
        values[:, : rest.shape[1]] += rest
    return values[:, 0].clone()  # a view would keep all columns alive


def place(rows: Tensor) -> torch.device:
    """Where rows are compared: on their CUDA device, else on the first one, else on the host."""
    if rows.is_cuda or not torch.cuda.is_available():
        return rows.device
    return torch.device("cuda")


@dataclass(frozen=True, eq=False)
class PointSet:
    """A set of rows as it was given, with its duplicates known.

    Attributes:
        values: (N, D), any floating type.
        mean: (D,), of the rows, rounded to the working form's type.
        first: (N,) index of the first equal row; None where all rows differ.
    """

    values: Tensor
    mean: Tensor
    first: Tensor | None

    @classmethod
    def of(cls, values: Tensor, sizes: Plan) -> "PointSet":
        """Look the rows over, where they are compared.

        Raises:
            ValueError: where squared distances would overflow.
        """
        values = values.to(place(values))
        total, largest = values.new_zeros(values.shape[1], dtype=torch.float64), 0.0
        for part in ranges(len(values), sizes.tile):
            total += values[part].double().sum(dim=0)
            largest = max(largest, float(values[part].abs().max()))
        if largest > LARGEST:
            raise ValueError(
                f"features reach {largest:.1e}, and distances of more than {LARGEST:.0e} overflow; "
                "scale both sides."
            )
        kind = torch.promote_types(values.dtype, torch.float32)
        return cls(values, (total / len(values)).to(kind), first_equal(values, sizes))


def first_equal(values: Tensor, sizes: Plan) -> Tensor | None:
    """(N,) index of the first equal row of (N, D); None where all differ.

    Rows are grouped by a hash of their bits, and groups are compared.
    """
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    rng = torch.Generator().manual_seed(0)
    odd = (2 * torch.randint(2**61, values.shape[1:], generator=rng) + 1).to(values.device)
    parts = list(ranges(len(values), sizes.tile))
    hashes = odd.new_empty(len(values))  # filled in place: small blocks kept between large ones
    for part in parts:  # would leave holes in the heap
        bits = values[part].view(whole).long()
        bits = bits ^ (bits >> 4 * values.element_size())  # low bits of round numbers are zero
        hashes[part] = (bits * odd).sum(dim=1)
    distinct, group = torch.unique(hashes, return_inverse=True)
    if len(distinct) == len(values):
        return None
    index = torch.arange(len(values), device=values.device)
    first = torch.full_like(distinct, len(values)).scatter_reduce_(0, group, index, "amin")[group]
    same = all(bool((values[part] == values[first[part]]).all()) for part in parts)
    return first if same else None


@dataclass(frozen=True, eq=False)
class Distances:
    """Approximate squared distances of rows x (M, D) to rows y (N, D), and their error bounds.

    D = |a|^2 + |b|^2 - 2 a.b with a = x - shift and b = y - shift in the working type, whose
    rounding unit is u. With S = |a|^2 + |b|^2 the sum in a.b errs by at most D u S / 2 in any
    order, with or without fused operations (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5). Rounding a, b, S and D, comparing with a radius up to 16 S (a
    larger one decides by itself), and settled pairs, whose own sum errs by (log2 D + 2) u where
    the working type is theirs, add less than 128 u S. So |error| <= (D + 128) u S.

    Attributes:
        x, y: the rows.
        shift: (D,), the mean of y; distances do not change, S shrinks and with it the bound.
        norms_x, norms_y: (M,) and (N,), squared norms in the working type.
        sizes: of blocks.
    """

    x: PointSet
    y: PointSet
    shift: Tensor
    norms_x: Tensor
    norms_y: Tensor
    sizes: Plan

    @classmethod
    def between(cls, x: PointSet, y: PointSet, sizes: Plan) -> "Distances":
        """float32 where squares of the norms fit comfortably, else float64."""
        shift = y.mean
        norms = [rows.values.new_empty(len(rows.values), dtype=torch.float64) for rows in (x, y)]
        for rows, norm in zip((x, y), norms, strict=True):
            for part in ranges(len(norm), sizes.tile):
                norm[part] = sum_of_squares(rows.values[part].double() - shift)
        largest = max(float(norm.max()) for norm in norms)
        kind = torch.float32 if 2.0**-60 < largest < 2.0**100 else torch.float64
        return cls(x, y, shift, norms[0].to(kind), norms[1].to(kind), sizes)

    def pieces(self) -> Iterator["Piece"]:
        """Pieces of some x rows and all y rows, in order."""
        kind, num = torch.finfo(self.norms_x.dtype), len(self.norms_y)
        unit = (len(self.shift) + DECIDED) * kind.eps / 2
        held = self.norms_y.new_empty(min(self.sizes.block, len(self.norms_x)), num)
        for block in ranges(len(self.norms_x), self.sizes.block):
            a = self._working(self.x, block)
            products = held[: len(a)]
            for tile in ranges(num, self.sizes.tile):
                torch.mm(a, self._working(self.y, tile).T, out=products[:, tile])
            for rows in ranges(block.stop, self.sizes.piece, block.start):
                squares = self.norms_x[rows, None] + self.norms_y
                bound = (squares * unit).add_(kind.tiny * 2**26)  # what underflow may take
                product = products[rows.start - block.start : rows.stop - block.start]
                yield Piece(self, rows, squares.sub_(product, alpha=2), bound)

    def _working(self, rows: PointSet, where: slice) -> Tensor:
        kind = self.norms_x.dtype
        values = rows.values[where].to(torch.promote_types(kind, rows.values.dtype))
        return (values - self.shift).to(kind)

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """(P,) squared distances, float64, of x rows i (P,) and y rows j (P,), both indices.

        Pairs of duplicates are computed once.
        """
        if self.x.first is None and self.y.first is None:
            return self._settle(i, j)
        num = len(self.norms_y)
        i = i if self.x.first is None else self.x.first[i]
        j = j if self.y.first is None else self.y.first[j]
        pairs, where = torch.unique(i * num + j, return_inverse=True)
        return self._settle(pairs // num, pairs % num)[where]

    def _settle(self, i: Tensor, j: Tensor) -> Tensor:
        found = self.norms_x.new_empty(len(i), dtype=torch.float64)
        x, y = self.x.values, self.y.values
        for part in ranges(len(i), self.sizes.settled):
            found[part] = sum_of_squares(x[i[part]].double().sub_(y[j[part]]))
        return found


@dataclass(frozen=True, eq=False)
class Piece:
    """Distances of some x rows (R, D) to all y rows (N, D).

    Attributes:
        of: where it comes from.
        rows: which x rows.
        squared: (R, N), approximate.
        bound: (R, N), of the error.
    """

    of: Distances
    rows: slice
    squared: Tensor
    bound: Tensor

    def inside(self, radii: Tensor, strict: bool) -> Tensor:
        """(R, N), whether a pair is nearer than its squared radius (N,) or (R, 1), float64."""
        rounded = radii.to(self.squared.dtype)
        inside = self.squared < rounded
        open_ = (self.squared - rounded).abs_() <= self.bound
        i, j = open_.nonzero(as_tuple=True)
        exact, limit = self.of.exact(i + self.rows.start, j), radii.expand(inside.shape)[i, j]
        inside[i, j] = exact < limit if strict else exact <= limit
        return inside

    def smallest(self, rank: int) -> Tensor:
        """(R,) squared distance, float64, of the given rank (1: the nearest) in each row."""
        nearest = (self.squared + self.bound).topk(rank, dim=1, largest=False).values
        i, j = (self.squared - self.bound <= nearest[:, -1:]).nonzero(as_tuple=True)
        exact = self.of.exact(i + self.rows.start, j)
        order = exact.argsort()
        order = order[i[order].argsort(stable=True)]  # by row, then by distance
        begin = torch.searchsorted(i, torch.arange(len(nearest), device=i.device))
        return exact[order[begin + rank - 1]]


def radii(rows: PointSet, k: int, sizes: Plan) -> Tensor:
    """(N,) squared distance of each row to its k-th nearest other row, float64."""
    found = rows.values.new_empty(len(rows.values), dtype=torch.float64)
    for piece in Distances.between(rows, rows, sizes).pieces():
        found[piece.rows] = piece.smallest(k + 1)  # the row itself is nearest
    return found


@dataclass(eq=False)
class Tally:
    """Hits while they are counted.

    Attributes:
        points: (M,) whether a point lies in a ball.
        balls: (N,) whether a ball holds a point.
        pairs: (), so far.
    """

    points: Tensor
    balls: Tensor
    pairs: Tensor

    @classmethod
    def empty(cls, points: PointSet, centres: PointSet) -> "Tally":
        """No hits yet."""
        x, y = points.values, centres.values
        none = [x.new_zeros(len(rows), dtype=torch.bool) for rows in (x, y)]
        return cls(none[0], none[1], x.new_zeros((), dtype=torch.int64))

    def add(self, points: slice, balls: slice, inside: Tensor) -> None:
        """Count pairs (R, S) of these points and balls."""
        self.points[points] |= inside.any(dim=1)
        self.balls[balls] |= inside.any(dim=0)
        self.pairs += inside.sum()

    def hits(self) -> Hits:
        """As integers."""
        return Hits(int(self.points.sum()), int(self.balls.sum()), int(self.pairs))

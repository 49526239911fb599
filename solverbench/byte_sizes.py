"""Sizes of memory as people write them: ``6GB``, ``1GiB``, ``512 MB``, plain numbers."""

import re

PREFIXES = "kmgt"  # 1000 or, with an i, 1024 to the first to fourth power
WRITTEN = re.compile(rf"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([{PREFIXES}])(i?))?b?", re.IGNORECASE)


def num_bytes(size: object) -> int:
    """How many bytes a size is.

    Args:
        size: a number, or text: a number and B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB or
            TiB (powers of 1024), upper or lower case.

    Returns:
        Whole bytes, rounded, at least 1.

    Raises:
        ValueError: for anything else.
    """
    known = isinstance(size, str | int | float) and not isinstance(size, bool)
    match = WRITTEN.fullmatch(str(size).strip()) if known else None
    if match is not None:
        number, prefix, binary = match.groups()
        power = PREFIXES.index(prefix.lower()) + 1 if prefix else 0
        found = float(number) * float(1024 if binary else 1000) ** power
        if 1 <= found < 2**63:
            return round(found)
    raise ValueError(
        f"{size!r} is no size of memory; give bytes, at least 1, or text such as 6GB, 512MB or 1GiB"
    )

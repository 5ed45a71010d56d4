"""Small histograms and courses as a line of block characters."""

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
# Of a terminal that cannot show blocks: the same by digits.
_DIGITS = "12345678"


def bars(counts: Sequence[float], *, blocks: bool = True) -> str:
    """One character for each: a dot for none, and by height for more; the tallest is full."""
    tallest = max(counts, default=0)
    signs = _BLOCKS if blocks else _DIGITS
    # What is there at all is seen, however little it is beside the tallest.
    return "".join(
        signs[min(len(signs) - 1, int(count / tallest * len(signs)))] if count else "." for count in counts
    )

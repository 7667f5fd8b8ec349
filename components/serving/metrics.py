"""What gateway and model server count alike."""

from collections.abc import Hashable

from ..runtime.ports import BURST

BUCKETS = tuple(round(0.002 * 1.25**step, 6) for step in range(39))
"""Limits of answer times, 2 ms to 9.6 s, so close together that a slowness of a quarter is seen."""


def is_refusal(code: int) -> bool:
    """Whether it was the client's mistake: that tells nothing about a version."""
    return 400 <= code < 500


class Rows:
    """Failures in a row, of which up to `BURST` count as one: what fails together has one cause."""

    def __init__(self) -> None:
        self._row: dict[Hashable, int] = {}

    def failures(self, who: Hashable, code: int) -> int:
        """How much an answer, no refusal, adds to the failures of whoever gave it: 1 or 0. A success ends the row."""
        row = self._row[who] = self._row.get(who, 0) + 1 if code >= 500 else 0
        return int(row % BURST == 1)

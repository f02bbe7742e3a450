"""What can't be used, counted by reason with the first case of each."""

from collections import Counter
from typing import Any

from mirg_jax.errors import shorten


class LeftOut:
    """Counts by reason, with the first message of each."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, message: str = "") -> None:
        """Counts a case.

        Args:
          reason: why it can't be used, the same text for all cases of the kind.
          message: where it is, what is wrong, and what to do; kept of the first case.
        """
        self._counts[reason] += 1
        self._first.setdefault(reason, shorten(message or reason, 300))

    def merge(self, rows: list[dict[str, Any]]) -> None:
        """Adds what another process, or an earlier run, has counted."""
        for row in rows:
            self._counts[row["reason"]] += row["count"]
            self._first.setdefault(row["reason"], row["first"])

    @property
    def total(self) -> int:
        """The number of cases."""
        return self._counts.total()

    def to_json(self) -> list[dict[str, Any]]:
        """Returns reasons, counts and first cases, the most frequent first."""
        order = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [{"reason": r, "count": n, "first": self._first[r]} for r, n in order]

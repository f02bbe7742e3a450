"""Which rows ask for an answer without thoughts."""

import dataclasses
import hashlib
from collections.abc import Sequence

from mirg_jax.data.examples import Example, key_of


def ask(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Draws the rows that ask for a direct answer, among those that don't say it themselves.

    The draw depends on a row's content and not on its place, so it stays when rows are added.

    Args:
      examples: the rows.
      share: the share of rows to draw, from 0 to 1.
      seed: random seed.
    """

    def drawn(example: Example) -> bool:
        digest = hashlib.sha256(f"{seed} {key_of(example)}".encode()).digest()
        return int.from_bytes(digest[:6]) < share * 2**48

    return [
        dataclasses.replace(each, direct=drawn(each)) if each.direct is None and share else each
        for each in examples
    ]

"""Which version of MIG-Bench a file is, told by its rows."""

import hashlib
import json
from collections.abc import Sequence

from mirg_jax.mig_bench.benchmark import Row

# By the hash of their rows, whatever the file's layout.
_FIRST = "90dde7f147e100bb252fde6f794c48a32f8a8b7764cfc7b8cb5c7a116a8c6b9b"
_VERSIONS = {_FIRST: "MIG-Bench, 4,295 rows, first version"}
# Others that are known by their number of rows alone, from runs that others report.
_COUNTS = {4276: ", as many as MIG-Bench of mid-2025, which has corrected answers"}


def content_hash(rows: Sequence[Row]) -> str:
    """Returns a hash of a benchmark's rows: tasks, image paths, questions and answers, in order."""
    told = [[row.task, row.images, row.question, row.answer] for row in rows]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def name_of(rows: Sequence[Row]) -> str:
    """Returns the name of a benchmark, for results: a known version, or another file.

    Args:
      rows: all rows of its file.
    """
    other = f"another file, {len(rows):,} rows{_COUNTS.get(len(rows), '')}"
    return _VERSIONS.get(content_hash(rows), other)

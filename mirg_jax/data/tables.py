"""Parquet and Arrow files, opened so that any cell can be read; needs pyarrow.

An Arrow file is mapped into memory, so that a cell costs what it holds, and nothing of a file stays
in this process. Parquet has no cells to go to: a file that holds images is written as an Arrow file
once, in the cache of this machine, and read from there.
"""

import bisect
import contextlib
import functools
import hashlib
import pathlib
import threading
import types
from collections.abc import Iterator
from typing import Any

from mirg_jax.errors import DataError, one_line
from mirg_jax.files import outputs, places
from mirg_jax.files.streams import progress_bar, say

INSTALL = "pip install 'pyarrow>=17', or -e '.[tables]'"
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_AT_ONCE = 64  # rows that are unpacked together
_MOST_OPEN = 256  # files
_opening = threading.Lock()


def is_table_file(file: pathlib.Path) -> bool:
    """Returns whether a file is in Parquet or Arrow, by its first bytes."""
    return _beginning(file).startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def _beginning(file: pathlib.Path) -> bytes:
    try:
        with places.open_file(file) as opened:
            return opened.read(8)
    except OSError:  # whoever reads it says so
        return b""


def holds_bytes(kind: Any) -> bool:
    """Returns whether values of an Arrow type are bytes, or have bytes in them."""
    pa = _pyarrow()
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    if any(map(holds_bytes, (kind.field(n).type for n in range(kind.num_fields)))):
        return True
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in (*of_bytes, pa.types.is_binary_view))


class Table:
    """An open file.

    Attributes:
      columns: the columns' names.
    """

    def __init__(self, batches: list[Any], schema: Any):
        """
        Args:
          batches: pyarrow's record batches.
          schema: their schema.
        """
        self.columns: list[str] = schema.names
        self._batches, self._kinds, self._starts = batches, schema.types, [0]
        for batch in batches:
            self._starts.append(self._starts[-1] + batch.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows: Python's values, and pyarrow's scalars where bytes are in them."""
        kept = [holds_bytes(kind) for kind in self._kinds]
        for batch in self._batches:
            columns = [
                column if keep else column.to_pylist()
                for keep, column in zip(kept, batch.columns, strict=True)
            ]
            for cells in zip(*columns, strict=True):
                yield dict(zip(self.columns, cells, strict=True))

    def cell(self, row: int, column: str) -> Any:
        """Returns pyarrow's scalar of a cell.

        Raises:
          LookupError: if there is no such cell.
        """
        if not 0 <= row < len(self):
            raise LookupError(f"no row {row}")
        number = bisect.bisect_right(self._starts, row) - 1
        return self._batches[number].column(column)[row - self._starts[number]]


def open_table(file: pathlib.Path) -> Table:
    """Opens a file; while it stays as it is, it is opened once.

    Raises:
      DataError: if it can't be read, or pyarrow isn't installed.
    """
    pa = _pyarrow(file)
    with _opening, _explained(pa, file):
        found = file.stat()
        return _open(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache(_MOST_OPEN)
def _open(file: pathlib.Path, size: int, changed: int) -> Table:
    if not _beginning(file).startswith(_PARQUET):
        return _open_arrow(file)
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as parquet:
        if any(map(holds_bytes, parquet.schema_arrow.types)):
            name = hashlib.sha256(f"{file.resolve()} {size} {changed}".encode()).hexdigest()[:40]
            return _open_arrow(_unpacked(file, parquet, f"{name}.arrow"))
        content = parquet.read()
        return Table(content.to_batches(), content.schema)


def _open_arrow(file: pathlib.Path) -> Table:
    pa = _pyarrow()
    mapped = pa.memory_map(str(file))
    if _beginning(file).startswith(_ARROW_FILE):
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    else:
        reader = pa.ipc.open_stream(mapped)
        batches = list(reader)
    for batch in batches:
        batch.validate(full=True)  # or damaged offsets would lead out of the file
    return Table(batches, reader.schema)


def _unpacked(file: pathlib.Path, parquet: Any, name: str) -> pathlib.Path:
    """Returns an Arrow file with the rows of a Parquet file, written if it isn't there yet."""
    pa = _pyarrow()
    folder = places.cache_folder("tables")
    kept = folder / name
    if kept.is_file():
        return kept
    count = parquet.metadata.num_rows
    say(f"{file}: its {count} rows are unpacked to {kept}, once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            outputs.whole(kept) as part,
            progress_bar(total=count, desc=file.name, unit="row", mininterval=1) as bar,
            pa.OSFile(str(part), "wb") as to,
            pa.ipc.new_stream(to, parquet.schema_arrow) as writer,
        ):
            for batch in parquet.iter_batches(_AT_ONCE):
                writer.write_batch(batch)
                bar.update(batch.num_rows)
    except pa.ArrowException:
        raise
    except OSError as error:
        if error.errno is None:  # pyarrow's own, of damaged files
            raise
        raise DataError(
            f"{file}: can't be unpacked to {folder} ({error.strerror}); make room there, or set "
            "XDG_CACHE_HOME to a folder on another disk"
        ) from None
    return kept


def _pyarrow(file: pathlib.Path | None = None) -> types.ModuleType:
    """Returns pyarrow; what it is needed for is named if it is missing."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{file}: pyarrow is needed to read Parquet and Arrow files; {INSTALL}"
        ) from None
    return pyarrow


@contextlib.contextmanager
def _explained(pa: types.ModuleType, file: pathlib.Path) -> Iterator[None]:
    """Turns what pyarrow raises of a damaged file into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{file}: can't be read as Parquet or Arrow ({one_line(error)}); the file may be cut, "
            "get or make it again"
        ) from None

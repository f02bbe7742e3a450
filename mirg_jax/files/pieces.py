"""Files of lines in a store, where nothing is appended to: NAME, and pieces in NAME.d/.

A piece is named by the number of its first line in the whole, from 0. Pieces are merged into NAME
now and then. One that was merged, but is still there since the process was killed, begins before
the end of what was read, and its lines are passed over.
"""

import posixpath

import fsspec
from etils import epath

from mirg_jax.files import places

_MOST = 200  # pieces; more are merged


def read(path: epath.Path) -> bytes:
    """Returns the whole lines of a file and of its pieces.

    Raises:
      OSError: if they can't be read; FileNotFoundError if there are none.
    """
    found, names = _read(path)
    if not found and not names and not exists(path):
        places.read_bytes(path)  # raises
    return b"".join(found)


def exists(path: epath.Path) -> bool:
    """Returns whether there is such a file, or a piece of it."""
    with places.reached(path):
        return path.exists() or bool(_pieces(path))


def _read(path: epath.Path) -> tuple[list[bytes], list[str]]:
    """Returns the lines of a file, and the names of its pieces."""
    try:
        lines = places.read_bytes(path).splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    names = _pieces(path)
    with places.reached(path):
        system, _ = fsspec.url_to_fs(str(path))
        contents = system.cat(names) if names else {}
    for name in names:
        first = int(posixpath.basename(name).split(".")[0])
        lines += contents[name].splitlines(keepends=True)[max(0, len(lines) - first) :]
    return lines, names


def _pieces(path: epath.Path) -> list[str]:
    """Returns the names of a file's pieces, in the order of their lines."""
    with places.reached(path):
        system, folder = fsspec.url_to_fs(f"{path}.d")
        try:
            return sorted(system.find(folder))
        except FileNotFoundError:
            return []


def replace(path: epath.Path, text: bytes) -> None:
    """Writes a file anew, and removes its pieces.

    Raises:
      OSError: if it can't be written.
    """
    places.write_bytes(path, text)
    _remove(path, _pieces(path))


def _remove(path: epath.Path, names: list[str]) -> None:
    if names:
        with places.reached(path):
            system, _ = fsspec.url_to_fs(str(path))
            system.rm(names)


class PieceWriter:
    """Writes lines behind those that are there; they are in the store when `write` returns."""

    def __init__(self, path: epath.Path):
        """Merges the pieces that are there.

        Raises:
          OSError: if nothing can be written.
        """
        self._path = path
        self._merge()

    def write(self, text: bytes) -> None:
        """Writes one or more lines, with their line breaks.

        Raises:
          OSError: if they can't be written; they are then not there.
        """
        if self._pieces >= _MOST:
            self._merge()
        name = epath.Path(f"{self._path}.d") / f"{self._count:012d}.jsonl"
        places.write_bytes(name, text)
        self._count += text.count(b"\n")
        self._pieces += 1

    def close(self) -> None:
        """Merges all pieces.

        Raises:
          OSError: if that can't be written; the pieces stay.
        """
        if self._pieces:
            self._merge()

    def _merge(self) -> None:
        lines, names = _read(self._path)
        if names or not lines:
            places.write_bytes(self._path, b"".join(lines))
            _remove(self._path, names)
        self._count, self._pieces = len(lines), 0

"""Images in a store, such as a bucket: found by name below a URL, fetched whole, kept if asked."""

import functools
import hashlib
import pathlib
import posixpath

from etils import epath

from mirg_jax.errors import DataError
from mirg_jax.files import outputs, places
from mirg_jax.files.streams import say


def candidates(root: epath.Path, path: str, folders: tuple[str, ...]) -> list[epath.Path]:
    """Returns the places where an image may lie, the likeliest first.

    Args:
      root: the URL of the image root.
      path: a path in the data, or a URL below the root.
      folders: names of data sets that paths begin with; the root may be that folder.

    Raises:
      DataError: if the path leads out of the root.
    """
    base = str(root).rstrip("/")
    relative = path.removeprefix(f"{base}/") if places.is_url(path) else path
    # A store takes names as they are, so a name with ".." would be another file.
    relative = posixpath.normpath(relative)
    if places.is_url(relative) or relative.startswith("/") or relative.split("/")[0] in ("..", "."):
        raise DataError(
            f"image {path!r}: the path leaves the image root; make it relative to {base!r}"
        )
    if "\0" in relative:
        raise DataError(f"image {path!r}: not a usable path (a null byte); correct the row")
    first, _, rest = relative.partition("/")
    if first not in folders or not rest:
        return [root / relative]
    both = [root / relative, root / rest]
    return both[::-1] if root.name == first else both


def fetch(found: list[epath.Path], cache: str) -> tuple[str, bytes]:
    """Returns an image's URL and its content.

    Args:
      found: the places where it may lie, from `candidates`.
      cache: folder on a disk where files are kept and looked for; "": none.

    Raises:
      OSError: if it can't be read; FileNotFoundError if it lies at none of them.
    """
    for place in found:
        kept = pathlib.Path(cache) / _name(place) if cache else None
        if kept and kept.is_file():
            return str(place), kept.read_bytes()
    for number, place in enumerate(found, start=1):
        try:
            data = places.read_bytes(place)
        except FileNotFoundError:
            if number == len(found):
                raise
            continue
        if cache:
            try:
                _keep(pathlib.Path(cache) / _name(place), data)
            except OSError as error:
                _say_once(f"{cache}: keeps no further images ({error.strerror or error})")
        return str(place), data
    raise FileNotFoundError


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _name(place: epath.Path) -> str:
    """Returns the path of a file in the cache."""
    digest = hashlib.sha256(str(place).encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:40]}{place.suffix}"


def _keep(kept: pathlib.Path, data: bytes) -> None:
    """Writes a file to the cache; other threads and processes may do the same."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with outputs.whole(kept) as part:
        part.write_bytes(data)

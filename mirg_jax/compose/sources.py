"""Where labels come from: a reader for each kind of file, all to photos below one image root."""

import dataclasses
import hashlib
import os
import pathlib
import posixpath
from collections.abc import Callable, Iterator, Sequence

from mirg_jax.compose.coco import read_coco
from mirg_jax.compose.photos import Photo
from mirg_jax.compose.refs import read_refs
from mirg_jax.compose.rows import read_rows
from mirg_jax.compose.tracks import read_frames, read_mot
from mirg_jax.compose.yolo import read_yolo
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files.hashes import hash_file

_Reader = Callable[[pathlib.Path, ImageRoot, LeftOut], Iterator[Photo]]


def _without_root(
    read: Callable[[pathlib.Path, LeftOut], Iterator[Photo]],
) -> _Reader:
    return lambda path, root, left_out: read(path, left_out)


READERS: dict[str, _Reader] = {
    "coco": _without_root(read_coco),
    "yolo": _without_root(read_yolo),
    "refs": _without_root(read_refs),
    "mot": _without_root(read_mot),
    "lasot": _without_root(read_frames),
    "rows": read_rows,
}

# Endings of files of labels in folders.
_LABELS = {".txt", ".names", ".label", ".ini", ".yaml", ".yml", ".json", ".jsonl", ".csv"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Labels of one kind.

    Attributes:
      kind: a key of `READERS`.
      labels: the file or folder.
      folder: what the paths of images in it are relative to, itself relative to the image root.
      complete: whether every object of the labels in it has a box, although its kind doesn't say
        so.
    """

    kind: str
    labels: pathlib.Path
    folder: str = ""
    complete: bool = False


def parse_source(text: str, complete: Sequence[str] = ()) -> Source:
    """Reads KIND=LABELS or KIND=LABELS@FOLDER.

    Args:
      text: the text.
      complete: kinds whose labels are complete.

    Raises:
      ConfigError: it is something else, or there is no such file or folder.
    """
    kind, sign, rest = text.partition("=")
    if kind not in READERS or not sign or not rest:
        raise ConfigError(
            f"--source={text}: give KIND=LABELS or KIND=LABELS@FOLDER, with KIND one of "
            f"{', '.join(READERS)}"
        )
    labels, _, folder = rest.partition("@")
    if os.path.exists(rest):  # a name with an @
        labels, folder = rest, ""
    if not os.path.exists(labels):
        raise ConfigError(f"--source={text}: there is no {labels!r}; check the path")
    return Source(kind, pathlib.Path(labels), folder, kind in complete)


def hash_labels(source: Source) -> str:
    """Returns a hash of the content of a source's labels; in a folder, of its files but images.

    Raises:
      DataError: if a file can't be read.
    """
    folder = source.labels
    if folder.is_file():
        if source.kind != "yolo":
            return hash_file(folder)
        folder = folder.parent  # of data.yaml
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _LABELS and path.is_file():
            digest.update(f"{path.relative_to(folder)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def read_source(source: Source, root: ImageRoot, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the photos of a source, with paths relative to the image root.

    Args:
      source: the source.
      root: the image root.
      left_out: counts what can't be used.

    Raises:
      DataError: if a file can't be used at all.
    """
    folder = (
        root if not source.folder else dataclasses.replace(root, path=root.path / source.folder)
    )
    for photo in _read(source, folder, left_out):
        path = _below(root, source.folder, photo.path)
        if path is None:
            left_out.add(
                "an image lies outside the image root",
                f"{source.labels}: {photo.path!r} isn't below {str(root.path)!r}; give another "
                "--image_root",
            )
            continue
        sequence = photo.sequence and (_below(root, "", photo.sequence) or photo.sequence)
        complete = photo.complete or source.complete
        yield dataclasses.replace(photo, path=path, sequence=sequence, complete=complete)


def _read(source: Source, folder: ImageRoot, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the photos of a source; raises DataError, too, for what the system can't read."""
    try:
        yield from READERS[source.kind](source.labels, folder, left_out)
    except OSError as error:
        where = error.filename or source.labels
        raise DataError(f"{where}: cannot be read ({error.strerror}); check the path") from None


def _below(root: ImageRoot, folder: str, path: str) -> str | None:
    """Returns a path relative to the image root, with slashes; None if it isn't below it."""
    if os.path.isabs(path):
        path = os.path.relpath(path, os.path.abspath(root.path))
    else:
        path = posixpath.join(folder, path)
    path = posixpath.normpath(path.replace(os.sep, "/"))
    return None if path.startswith("../") or path == ".." or os.path.isabs(path) else path

"""Hashes of files' content, on disks and in stores."""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import fsspec

from mirg_jax.errors import DataError
from mirg_jax.files import places
from mirg_jax.files.places import Place

_PART = 2**24  # bytes that are read and hashed at a time by a thread
SAMPLE = 1024  # bytes
# Of a model or of images: made from samples, and from all bytes.
_TWO_HALVES = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}|[0-9a-f]{32}\.[0-9a-f]{32}")

Read = Callable[[], bytes]


def hash_file(path: str | Place) -> str:
    """Returns the SHA-256 hash of a file's content.

    Raises:
      DataError: if the file can't be read.
    """
    try:
        if places.is_url(path):
            return hashlib.sha256(places.read_bytes(path)).hexdigest()
        with places.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def hash_files(files: Iterable[tuple[str, Place]]) -> str:
    """Returns a hash of the names and the whole content of large files.

    They are read in parts, by as many threads as there are cores: a hash of the parts' hashes can
    be computed side by side, also within one file, and holds no file in memory.

    Args:
      files: the name and the place of each, in their order.
    """
    digest = hashlib.blake2b(digest_size=32)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for name, place in files:
            size, reads = _parts(place)
            digest.update(f"{name} {size}\n".encode())
            for part in threads.map(_hash, reads):
                digest.update(part)
    return digest.hexdigest()


def agrees(found: Any, now: Any) -> bool:
    """Returns whether a recorded fact is the one of now.

    Of the hash of a model or of images, earlier versions recorded only the first half.

    Args:
      found: the recorded fact.
      now: the fact of now.
    """
    if isinstance(found, str) and isinstance(now, str) and _TWO_HALVES.fullmatch(now):
        return found in (now, now.partition(".")[0])
    return found == now


def add_samples(digest: Any, file: BinaryIO, name: str, parts: list[tuple[int, int]]) -> None:
    """Adds a file's name and size, and the beginning, middle and end of each of its parts."""
    digest.update(f"{name} {file.seek(0, os.SEEK_END)}\n".encode())
    for begin, end in parts:
        for start in (begin, (begin + end) // 2, max(begin, end - SAMPLE)):
            file.seek(start)
            digest.update(file.read(min(SAMPLE, end - start)))


def _hash(read: Read) -> bytes:
    return hashlib.blake2b(read(), digest_size=32).digest()


def _parts(place: Place) -> tuple[int, Iterator[Read]]:
    """Returns a file's size, and functions that each read a part of it."""
    if isinstance(place, pathlib.Path):
        size, read = place.stat().st_size, functools.partial(_read_part, place)
    else:
        system, path = fsspec.url_to_fs(str(place))
        size, read = system.size(path), functools.partial(system.cat_file, path)
    starts = range(0, size, _PART)
    return size, (functools.partial(read, start, min(start + _PART, size)) for start in starts)


def _read_part(path: pathlib.Path, start: int, end: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), end - start, start)

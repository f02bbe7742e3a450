"""Paths on this machine's disks, and URLs, which are no paths."""

import os
import pathlib
import re

from mirg_jax.errors import ConfigError

# Also with one slash, as a URL looks once it was taken for a path.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")


def is_url(path: str | os.PathLike) -> bool:
    """Returns whether a path is really a URL, such as gs://bucket/folder."""
    return _URL.match(os.fspath(path).strip()) is not None


def check_local(path: str | os.PathLike, name: str) -> None:
    """Checks that a path is none of a URL, which would be taken for a folder of that name here.

    Args:
      path: the path, or "".
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it is a URL.
    """
    if not is_url(path):
        return
    scheme = _URL.match(os.fspath(path).strip())["scheme"].lower()
    remedy = "copy the files to a disk, or mount the bucket, and give the path there"
    if scheme == "file":
        remedy = "give the path itself, without file://"
    raise ConfigError(f"{name}={os.fspath(path)}: is a URL where a path is needed; {remedy}")


def local(path: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns a path on this machine's disks.

    Args:
      path: the path.
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it is a URL.
    """
    check_local(path, name)
    return pathlib.Path(path)

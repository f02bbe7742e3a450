"""Where files lie: paths on this machine's disks, and URLs of stores such as gs://bucket/folder.

Paths are `pathlib.Path`, URLs are `epath.Path`, which has the same methods and reaches stores
through fsspec. A store has no folders: one is there as long as a file is in it.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from etils import epath

from mirg_jax.errors import ConfigError, UserError, without_secrets

# Old TensorFlows can't read all stores, and the errors are others; so it isn't used, if there is
# one. Read at the first use of a URL.
os.environ.setdefault("EPATH_USE_TF", "false")

Place = pathlib.Path | epath.Path

# Whose folders can be written to: Orbax knows how a checkpoint is completed without a rename.
WRITABLE = ("gs",)
STORES = ("gs", "s3", "az", "hf")
# Clients remember what was in a folder; TensorStore and other processes write there as well.
for _name in (*STORES, "gcs"):
    fsspec.config.conf.setdefault(_name, {}).setdefault("use_listings_cache", False)
# Also with one slash, as a URL looks once it was taken for a path.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")


def cache_folder(name: str) -> pathlib.Path:
    """Returns a folder of ours below XDG_CACHE_HOME, or ~/.cache; it need not be there.

    Raises:
      RuntimeError: if the user has no home.
    """
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # the standard says to ignore a relative one
        home = pathlib.Path.home() / ".cache"
    return home / "mirg_jax" / name


def expanded(path: str) -> str:
    """Returns a path with the home folder for ~ at its beginning, as shells have it.

    A shell leaves it as it is in `--workdir=~/run`. Behind the name of a list's entry,
    `NAME=~/file`, it is replaced too.

    Args:
      path: the path; a URL, a hub name or any other text stays as it is.
    """
    name, sign, rest = os.path.expanduser(path).rpartition("=")
    return name + sign + os.path.expanduser(rest)


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
    if is_url(path):
        remedy = "give a path on a disk of this machine, and copy files there first"
        if os.fspath(path).strip().lower().startswith("file:"):
            remedy = "give the path itself, without file://"
        raise ConfigError(
            f"{name}={without_secrets(os.fspath(path))}: is a URL where a path is needed; {remedy}"
        )


def check(path: str | os.PathLike, name: str) -> None:
    """Checks that a path is no URL, or one of a store that can be reached from here.

    Args:
      path: the path, the URL, or "".
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it is another URL, or the package for its store isn't installed.
    """
    text = os.fspath(path)
    scheme, _, rest = text.partition("://")
    if not is_url(path):
        return
    if scheme not in STORES:
        check_local(path, name)
    if not rest.strip("/"):
        raise ConfigError(
            f"{name}={without_secrets(text)}: names no bucket; give {scheme}://BUCKET/FOLDER"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(
            f"{name}={without_secrets(text)}: {scheme}:// needs another package ({error}); "
            "install it, or give a path on a disk"
        ) from None


def check_writable(path: str | os.PathLike, name: str) -> None:
    """Checks that a path is no URL, or one of a store that runs can be written to.

    Args:
      path: the path, the URL, or "".
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: see `check`; or if it is a URL of another store.
    """
    if is_url(path) and os.fspath(path).partition("://")[0] in set(STORES) - set(WRITABLE):
        raise ConfigError(
            f"{name}={without_secrets(os.fspath(path))}: runs are written to disks and to gs:// "
            "alone; give such a folder"
        )
    check(path, name)


def of(path: str | os.PathLike, name: str = "path") -> Place:
    """Returns the place that a path or a URL names.

    Args:
      path: the path or URL.
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: see `check`.
    """
    if not is_url(path):
        return pathlib.Path(path)
    check(path, name)
    return epath.Path(path)


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


@contextlib.contextmanager
def reached(place: str | os.PathLike) -> Iterator[None]:
    """Turns whatever the client of a store raises in a `with` block into an `OSError`.

    Its `strerror` is a few words. Errors of paths on disks are left as they are.

    Args:
      place: the path or URL that is used in the block.
    """
    if not is_url(place):
        yield
        return
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(place)) from None
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "File exists", str(place)) from None
    except Exception as error:  # of HTTP, of credentials, of time
        first = (str(error).splitlines() or [""])[0][:200]
        kind = PermissionError if isinstance(error, PermissionError) else OSError
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {first}"
        raise kind(errno.EIO, told, str(place)) from None


def is_folder(place: Place) -> bool:
    """Returns whether a folder is there; in a store, whether any file is in it.

    Raises:
      OSError: if the store can't be asked, where `is_dir` of some clients says no.
    """
    if isinstance(place, pathlib.Path):
        return place.is_dir()
    try:
        with reached(place):
            system, name = fsspec.url_to_fs(str(place))
            return system.info(name)["type"] == "directory"
    except FileNotFoundError:
        return False


def remedy(place: str | os.PathLike, on_disk: str = "make room there") -> str:
    """Returns what the user should do where a place can't be used, for a message.

    Args:
      place: the path or URL.
      on_disk: what to do if it is a path.
    """
    if is_url(place):
        return "check the connection, the credentials and the bucket's permissions"
    return on_disk


def read_bytes(path: str | os.PathLike) -> bytes:
    """Returns the content of a file; in a store, by one request.

    Args:
      path: the path or URL.

    Raises:
      ConfigError: see `check`.
      OSError: if it can't be read.
    """
    place = of(path)
    if isinstance(place, pathlib.Path):
        with open_file(place) as file:
            return file.read()
    with reached(place):
        system, name = fsspec.url_to_fs(str(place))
        return system.cat_file(name)


def is_special(path: str | os.PathLike) -> bool:
    """Returns whether a path of a disk is a device, a pipe or a socket."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_file(path: str | os.PathLike) -> IO[bytes]:
    """Opens a file of a disk for reading.

    Args:
      path: the path.

    Raises:
      OSError: if it can't be opened, or is a pipe or a device: inputs are read more than once.
    """
    if is_special(path):
        raise OSError(
            errno.ESPIPE, "a pipe or device, which is read only once; write it to a file", str(path)
        )
    return open(path, "rb")


def read_object(path: str | os.PathLike) -> dict[str, Any] | None:
    """Reads a record that may be missing or damaged.

    Args:
      path: the path or URL.

    Returns:
      The JSON object in the file; {} if it can't be read or is none, None if there is no file.
    """
    try:
        found = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_bytes(place: Place, data: bytes) -> None:
    """Writes an object of a store, whole or not at all.

    Raises:
      OSError: if it can't be written.
    """
    with reached(place):
        system, name = fsspec.url_to_fs(str(place))
        system.pipe_file(name, data)


def create(place: Place, data: bytes) -> None:
    """Writes an object of a store that must not be there yet.

    Raises:
      FileExistsError: if it is there.
      OSError: if it can't be written.
    """
    with reached(place):
        system, name = fsspec.url_to_fs(str(place))
        system.pipe_file(name, data, mode="create")


def remove(place: Place) -> None:
    """Removes an object of a store, if it is there.

    Raises:
      OSError: if it can't be removed.
    """
    with reached(place):
        if place.exists():
            place.unlink(missing_ok=True)


def absolute(place: Place) -> Place:
    """Returns a path from the root of the file system; a URL is one already."""
    return place.absolute() if isinstance(place, pathlib.Path) else place

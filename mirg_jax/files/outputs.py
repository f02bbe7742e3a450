"""Files and folders that a run will write: checked before anything is loaded, written whole."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

from mirg_jax.errors import ConfigError
from mirg_jax.files import places
from mirg_jax.files.places import Place

# What lies in a folder of each kind of results, and in no other.
MARKS = {
    "checkpoints": "a training run",
    "run.json": "an evaluation or ratings",
    "selection": "trajectories",
}


def check_folder(path: Place, name: str) -> None:
    """Checks that files can be written into a folder; nothing is created, or left there.

    Args:
      path: the folder, which need not exist, or a URL of one that runs can be written to.
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it is another URL, can't be made, is something else, or doesn't take files.
    """
    if not isinstance(path, pathlib.Path):
        _check_stored_folder(path, name)
        return
    places.check_local(path, name)
    with _explained(path, name):
        existing = _nearest_existing(path)
        if not existing.is_dir():
            raise NotADirectoryError(None, f"{existing} is not a folder")
        tempfile.TemporaryFile(dir=existing).close()


def _check_stored_folder(path: epath.Path, name: str) -> None:
    places.check_writable(path, name)
    with _explained(path, name):
        probe = path / f"write_test.{uuid.uuid4().hex[:12]}"
        places.write_bytes(probe, b"")
        with places.reached(probe):
            probe.unlink()


def check_file(path: pathlib.Path, name: str) -> None:
    """Checks that a file can be written; nothing is created, and a file there stays as it is.

    Args:
      path: the file, which need not exist, nor its folder.
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it is a URL or a folder, or can't be written.
    """
    places.check_local(path, name)
    with _explained(path, name):
        path = pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder; give a file's name")
        if path.is_file():
            open(path, "ab").close()
            return
        if path.exists():  # a device or a pipe
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "Permission denied")
            return
    check_folder(path.parent, name)
    with _explained(path, name):
        _nearest_existing(path)


def check_renames(folder: pathlib.Path) -> None:
    """Checks that folders with files in them can be renamed, as a checkpoint is once complete.

    A bucket that is mounted with gcsfuse refuses that, unless it is told otherwise.

    Args:
      folder: a folder that is there; it is left as it is.

    Raises:
      ConfigError: if they can't.
    """
    before = pathlib.Path(tempfile.mkdtemp(prefix="rename.", dir=folder))
    after = before.with_name(f"{before.name}.done")
    try:
        (before / "file").touch()
        before.rename(after)
    except OSError as error:
        raise ConfigError(
            f"{folder}: its file system renames no folders ({error.strerror}), which checkpoints "
            "need; give a folder on a disk or on NFS, or mount the bucket with "
            "gcsfuse --rename-dir-limit=100000"
        ) from None
    finally:
        for path in (before, after):
            shutil.rmtree(path, ignore_errors=True)


class _explained:
    """Turns errors of the system in a `with` block into a `ConfigError` that names the path."""

    def __init__(self, path: Place, name: str):
        self._path, self._name = path, name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, ConfigError):
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{self._name}={str(self._path)!r} cannot be written ({reason}); give another path"
            ) from None


def check_kind(folder: Place, mark: str, name: str) -> None:
    """Checks that a folder has no results of another kind: some of their files have equal names.

    Args:
      folder: the folder that is to be written to.
      mark: one of `MARKS`, that of what is to be written.
      name: what the user calls the folder, for the message: a flag.

    Raises:
      ConfigError: if it has.
    """
    for other, kind in MARKS.items():
        if other != mark and (folder / other).exists():
            raise ConfigError(
                f"{name}={folder}: has {kind}, of which some files would be replaced; give another "
                "folder"
            )


def _nearest_existing(path: pathlib.Path) -> pathlib.Path:
    """Returns the path itself if it exists, or else the nearest path above it that does.

    Raises:
      OSError: if a name is too long, or the path is a link to nowhere.
      ValueError: if the path has a null byte.
    """
    path = path.absolute()
    missing = []
    while True:
        try:
            path.stat()
            break
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise FileNotFoundError(None, f"{path} is a link to nowhere") from None
            missing.append(path.name)
            path = path.parent
    longest = os.pathconf(path, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in missing):
        raise OSError(None, "File name too long")
    return path


def write_text(path: Place, text: str, name: str) -> None:
    """Writes a user's output file, and makes its folder.

    Args:
      path: the file, or the URL of one in a store.
      text: its content.
      name: what the user calls it, for the message: a flag or a setting.

    Raises:
      ConfigError: if it can't be written.
    """
    with _explained(path, name):
        make_folder(path.parent)
        if isinstance(path, pathlib.Path) and path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a device or a pipe
        elif isinstance(path, pathlib.Path):
            with whole(path.resolve()) as part:
                part.write_text(text, encoding="utf-8")
        else:
            places.write_bytes(path, text.encode())


def make_folder(path: Place) -> None:
    """Makes a folder, and those above it; in a store, where there are none, does nothing."""
    if isinstance(path, pathlib.Path):
        path.mkdir(parents=True, exist_ok=True)


def replace_text(path: Place, text: str) -> None:
    """Writes a file under another name and renames it, so that it is never there in part."""
    if not isinstance(path, pathlib.Path):
        places.write_bytes(path, text.encode())
        return
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _part_of(path: pathlib.Path) -> pathlib.Path:
    """Returns a name beside a file's own that no other process writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write a file to, which gets its own name at the end of the `with` block.

    Each of several processes that write the same file has a path of its own.
    """
    part = _part_of(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def create_text(path: pathlib.Path, text: str) -> bool:
    """Writes a file, in one step, if there is none.

    Returns:
      Whether this process has written it, of all those that try at the same time.

    Raises:
      OSError: if it can't be written.
    """
    part = _part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True

"""Unpacking of a data set's archives: counted and checked first, then written where rows look."""

import contextlib
import io
import lzma
import os
import pathlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from mirg_jax.errors import DataError
from mirg_jax.files import outputs
from mirg_jax.files.streams import progress_bar
from mirg_jax.published.volumes import Archive, Joined, SplitZip

_MOST_TIMES = 20  # as large as the archive; pictures hardly shrink, so more is no data set
_MOST_MEMBERS = 20_000_000
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
)


class Member(NamedTuple):
    """A file in an archive: its name there, where it goes below the data set's folder, its size."""

    name: str
    target: pathlib.PurePosixPath
    size: int


def place_of(name: str, dataset: str, archive: str) -> pathlib.PurePosixPath | None:
    """Returns where a member goes, below the data set's folder; None for a folder's own entry.

    Members of the published archives lie below folders of the authors' machine, which end in the
    data set's name. Without that name, a member goes below the folder that the archive is named
    for.

    Args:
      name: the member's name.
      dataset: name of the data set's folder, which rows' paths begin with.
      archive: name of the archive.

    Raises:
      DataError: if the name is absolute, has "..", a backslash, a drive or control characters.
    """
    parts = pathlib.PurePosixPath(name).parts
    odd = ".." in parts or "\\" in name or re.search(r"[\x00-\x1f]|\A\w:", name)
    if odd or name.startswith("/") or not parts:
        raise DataError(
            f"{archive}: its member {name[:200]!r} would leave the folder; nothing was unpacked, "
            "get the archive from where it was published"
        )
    if name.endswith("/"):
        return None
    if dataset in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index(dataset)
        return pathlib.PurePosixPath(*parts[last + 1 :])
    stem = re.sub(r"\.(zip|tar|tgz|tar\.\w+)\Z", "", pathlib.PurePosixPath(archive).name)
    return pathlib.PurePosixPath(*(() if parts[0] == stem else (stem,)), *parts)


class Opened:
    """An archive that is open: what is in it, and its members' content."""

    def __init__(self, archive: Archive, files: Joined, dataset: str):
        self._archive, self._dataset, self._size = archive, dataset, files.starts[-1]
        # One for all: a reader that is no longer used closes what it reads.
        self._reader = io.BufferedReader(files, 1 << 20)
        self._zip: zipfile.ZipFile | None = None
        if archive.name.lower().endswith(".zip"):
            self._zip = SplitZip(files) if archive.is_split_zip else zipfile.ZipFile(self._reader)

    def members(self) -> list[Member]:
        """Returns the files of the archive, after checking all entries.

        Raises:
          DataError: if an entry would leave the folder, is a link or a device, two go to one place,
            or they are far larger than the archive.
        """
        found = list(self._zip_members() if self._zip else self._tar_members())
        size, most = sum(member.size for member in found), _MOST_TIMES * self._size
        if size > max(most, 1 << 20) or len(found) > _MOST_MEMBERS:
            raise DataError(
                f"{self._archive.name}: holds {len(found)} files of {size / 1e9:.1f} GB in all, "
                f"more than {_MOST_TIMES} times its own size; nothing was unpacked"
            )
        if len({member.target for member in found}) < len(found):
            raise DataError(
                f"{self._archive.name}: two of its files go to one place; nothing was unpacked"
            )
        return found

    def _place(self, name: str) -> pathlib.PurePosixPath | None:
        return place_of(name, self._dataset, self._archive.name)

    def _zip_members(self) -> Iterator[Member]:
        assert self._zip
        for info in self._zip.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise self._no_file(info.filename)
            if info.flag_bits & 1:
                raise DataError(f"{self._archive.name}: is encrypted; nothing was unpacked")
            if target := self._place(info.filename):
                yield Member(info.filename, target, info.file_size)

    def _tar_members(self) -> Iterator[Member]:
        with self._tar() as tar:
            for info in tar:
                if not (info.isreg() or info.isdir()):
                    raise self._no_file(info.name)
                target = self._place(info.name)
                if target and info.isreg():
                    yield Member(info.name, target, info.size)

    def _no_file(self, name: str) -> DataError:
        return DataError(
            f"{self._archive.name}: its member {name[:200]!r} is a link or a device; nothing was "
            "unpacked, get the archive from where it was published"
        )

    def contents(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Yields the name and the content of each file, in the archive's order."""
        if self._zip:
            for info in self._zip.infolist():
                if not info.is_dir():
                    with self._zip.open(info) as content:
                        yield info.filename, content
            return
        with self._tar() as tar:
            for info in tar:
                # Python's own rules too, beside those of `members`.
                checked = tarfile.data_filter(info, "/nowhere")
                if checked and info.isreg() and (content := tar.extractfile(info)):
                    yield info.name, content

    def _tar(self) -> tarfile.TarFile:
        self._reader.seek(0)
        return tarfile.open(fileobj=self._reader, mode="r:*")


@contextlib.contextmanager
def opened(archive: Archive, folder: pathlib.Path, dataset: str) -> Iterator[Opened]:
    """Opens an archive.

    Args:
      archive: the archive.
      folder: the folder of its files.
      dataset: name of the data set's folder.

    Raises:
      DataError: in the `with` block too, if it is damaged or can't be read.
    """
    try:
        with Joined([folder / name for name in archive.volumes]) as files:
            yield Opened(archive, files, dataset)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system: bz2 and gzip raise it, too, without a number
        raise DataError(
            f"{folder / archive.name}: is damaged or of an unknown form ({error}); delete its "
            "files and run again to get them anew"
        ) from None


def unpack(source: Opened, members: Sequence[Member], target: pathlib.Path) -> int:
    """Writes an archive's files, except those that are there already.

    Args:
      source: the archive.
      members: its files, as of `Opened.members`.
      target: the data set's folder.

    Returns:
      How many were written now.

    Raises:
      DataError: if a file is damaged, or a link is in the way.
      OSError: if one can't be written.
    """
    _remove_parts(members, target)
    wanted = {member.name: member for member in members}
    written = 0
    for name, content in progress_bar(source.contents(), total=len(wanted), unit="file"):
        member = wanted[name]
        path = target / member.target
        with contextlib.suppress(FileNotFoundError):
            if path.stat(follow_symlinks=False).st_size == member.size:
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_within(path.parent, target):
            raise DataError(f"{path}: a link there leads out of {target}; remove it")
        with outputs.whole(path) as part:
            with open(part, "xb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            if os.path.getsize(part) != member.size:
                raise DataError(f"{name}: has another size than its archive says; get it anew")
        written += 1
    return written


def _is_within(folder: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether a folder lies in another one, wherever links lead."""
    return folder.resolve().is_relative_to(target.resolve())


def _remove_parts(members: Sequence[Member], target: pathlib.Path) -> None:
    """Removes what a run that was killed has begun to write of an archive's files."""
    targets = {member.target for member in members}
    for folder in {each.parent for each in targets}:
        if _is_within(target / folder, target):
            for part in (target / folder).glob("*.part"):
                if folder / part.stem.rpartition(".")[0] in targets:  # NAME.RANDOM.part
                    part.unlink()

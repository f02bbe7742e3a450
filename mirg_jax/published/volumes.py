"""Archives in one or several files, read as one: split zip, and files that were simply cut."""

import bisect
import io
import itertools
import pathlib
import re
import struct
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mirg_jax.errors import DataError

_ZIP_VOLUME = re.compile(r"(?P<stem>.+)\.z(?P<number>\d{2,})\Z", re.IGNORECASE)
_ENDINGS = r"\.zip|\.tar|\.tar\.gz|\.tgz|\.tar\.bz2|\.tar\.xz"
_WHOLE = re.compile(rf".+(?:{_ENDINGS})\Z", re.IGNORECASE)
# NAME.zip.001, NAME.tar.gz.partaa, NAME.tar.part_ab, NAME.zip.part.00
_CUT = re.compile(
    rf"(?P<stem>.+(?:{_ENDINGS}))\.(?:(?P<number>\d{{2,}})|part[._-]?(?P<part>\d+|[a-z]{{1,4}}))\Z",
    re.IGNORECASE,
)


class Archive(NamedTuple):
    """An archive of one or several files.

    Attributes:
      name: that of the whole, as a path in its folder.
      volumes: names of its files, in the order of their content.
      is_split_zip: whether places in it are counted within each file (.z01, .z02, …, .zip).
    """

    name: str
    volumes: tuple[str, ...]
    is_split_zip: bool = False


def group(names: Iterable[str]) -> tuple[list[Archive], list[str]]:
    """Puts the files of each archive together.

    Returns:
      The archives, and the files that belong to none.

    Raises:
      DataError: if a file of an archive isn't there.
    """
    there = sorted(set(names))
    split: dict[str, dict[int, str]] = {}
    cut: dict[str, dict[int, str]] = {}
    for name in there:
        if found := _ZIP_VOLUME.match(name):
            split.setdefault(f"{found['stem']}.zip", {})[int(found["number"])] = name
        elif found := _CUT.match(name):
            cut.setdefault(found["stem"], {})[_order(found)] = name
    archives, others = [], []
    for whole, parts in split.items():
        if whole not in there:
            raise DataError(f"{whole}: the last file of a split archive is missing; get it too")
        _check_all(whole, parts, range(1, len(parts) + 1))
        volumes = (*(parts[number] for number in sorted(parts)), whole)
        archives.append(Archive(whole, volumes, is_split_zip=True))
    for whole, parts in cut.items():
        first = min(parts)
        _check_all(whole, parts, range(min(first, 1), min(first, 1) + len(parts)))
        archives.append(Archive(whole, tuple(parts[number] for number in sorted(parts))))
    known = {name for archive in archives for name in archive.volumes}
    for name in there:
        if name in known:
            continue
        if _WHOLE.match(name):
            archives.append(Archive(name, (name,)))
        else:
            others.append(name)
    return sorted(archives), others


def _order(found: re.Match) -> int:
    """Returns the number of a part; letters count from aa (or a) = 0."""
    told = found["number"] or found["part"]
    if told.isdigit():
        return int(told)
    return sum((ord(c) - ord("a")) * 26**i for i, c in enumerate(reversed(told.lower())))


def _check_all(whole: str, parts: dict[int, str], wanted: range) -> None:
    if missing := sorted(set(wanted) - parts.keys()):
        raise DataError(
            f"{whole}: of its files, number {missing[0]} is missing ({', '.join(parts.values())} "
            "are there); get it too"
        )


class Joined(io.RawIOBase):
    """Files one behind the other as one that can be read at any place; nothing is copied.

    Args:
      paths: the files.

    Attributes:
      starts: where each file begins.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._files = [open(path, "rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self.starts = [0, *itertools.accumulate(sizes)]
        self._place = 0

    def readable(self) -> bool:
        """As of any file that is read."""
        return True

    def seekable(self) -> bool:
        """As of any file that is read at any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place; see `io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.starts[-1]}[whence]
        if base + offset < 0:
            raise ValueError(f"a place before the beginning: {base + offset}")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def readinto(self, buffer) -> int:
        """Reads into a buffer, at most to the end of a file; see `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")
        if self._place >= self.starts[-1] or not len(view):
            return 0
        number = bisect.bisect_right(self.starts, self._place) - 1
        file = self._files[number]
        file.seek(self._place - self.starts[number])
        count = file.readinto(view[: self.starts[number + 1] - self._place])
        self._place += count
        return count

    def close(self) -> None:
        """Closes all files."""
        for file in self._files:
            file.close()
        super().close()


class SplitZip(zipfile.ZipFile):
    """A zip archive in several files, whose entries say which file they begin in.

    Python's zipfile reads archives of one file. Of those here, a member's place is counted from the
    start of its file, and so is the directory's; both are put right when the directory is read.

    Args:
      joined: the archive's files.
    """

    def __init__(self, joined: Joined):
        super().__init__(_OneDisk(joined))
        # zipfile takes what lies before the directory for something in front of the archive, and
        # has added its length to each place.
        for info in self.infolist():
            if info.volume >= len(joined.starts) - 1:
                raise zipfile.BadZipFile(f"file number {info.volume + 1} is missing")
            info.header_offset += joined.starts[info.volume] - self.fp.shift
        # Newer versions keep where a member ends at most, to find such as overlap.
        if not hasattr(zipfile.ZipInfo, "_end_offset"):
            return
        end = self.start_dir
        for info in sorted(self.infolist(), key=lambda info: info.header_offset, reverse=True):
            info._end_offset, end = end, info.header_offset


class _OneDisk(io.BufferedReader):
    """The files of a split zip with an end of the directory as of an archive of one file.

    Only numbers of files are changed there, so that zipfile reads it. `shift` is what zipfile adds
    to the places of members.
    """

    def __init__(self, joined: Joined):
        super().__init__(joined, 1 << 20)
        self.shift = 0
        self._patch: tuple[int, bytes] | None = None
        self._make_patch(joined)

    def _make_patch(self, joined: Joined) -> None:
        size = joined.starts[-1]
        start = max(0, size - 65_557 - 76)
        super().seek(start)
        tail = bytearray(super().read())
        end = tail.rfind(b"PK\5\6")
        if end < 0:
            raise zipfile.BadZipFile("no end of a zip archive; is the last file whole?")
        disk, first, here, _, length, offset = struct.unpack_from("<HHHHII", tail, end + 4)
        if disk != len(joined.starts) - 2 and disk != 0xFFFF:
            raise zipfile.BadZipFile(f"made of {disk + 1} files, and not {len(joined.starts) - 1}")
        ends = end
        if tail[end - 20 : end - 16] == b"PK\6\7":  # where the directory's end of 64 bits lies
            number, place, _ = struct.unpack_from("<IQI", tail, end - 16)
            at = joined.starts[number] + place - start
            if at < 0 or tail[at : at + 4] != b"PK\6\6":
                raise zipfile.BadZipFile("the end of its directory is damaged")
            ends = at
            count = struct.unpack_from("<Q", tail, at + 32)[0]
            first = struct.unpack_from("<I", tail, at + 20)[0]
            length, offset = struct.unpack_from("<QQ", tail, at + 40)
            struct.pack_into("<II", tail, at + 16, 0, 0)
            struct.pack_into("<Q", tail, at + 24, count)
            struct.pack_into("<IQI", tail, end - 16, 0, start + at, 1)
        else:
            count = struct.unpack_from("<H", tail, end + 10)[0]
        struct.pack_into("<HHHH", tail, end + 4, 0, 0, min(count, 0xFFFF), min(count, 0xFFFF))
        if joined.starts[first] + offset + length != start + ends:
            raise zipfile.BadZipFile("its directory doesn't end where it should")
        # What zipfile computes as the length of what is in front of the archive.
        self.shift = start + ends - length - offset
        self._patch = start, bytes(tail)
        super().seek(0)

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes, those of the directory's end as of an archive of one file."""
        place = super().tell()
        data = super().read(size)
        if self._patch is None or place + len(data) <= self._patch[0]:
            return data
        start, tail = self._patch
        kept = data[: max(0, start - place)]
        skip = max(0, place - start)
        return kept + tail[skip : skip + len(data) - len(kept)]

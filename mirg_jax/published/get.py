"""Gets a published data set: lists and counts its files, downloads, checks and unpacks them.

`FOLDER/get_data.json` keeps which commit is being got, which files were checked and which archives
are unpacked, so that a run that was killed goes on.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import hashes, outputs, places
from mirg_jax.files.locks import lock_of
from mirg_jax.files.streams import say
from mirg_jax.published import hub, unpack, volumes
from mirg_jax.published.hub import RemoteFile
from mirg_jax.published.volumes import Archive

REPOSITORIES = {
    "MGrounding-630k": "Michael4933/MGrounding-630k",
    "MIG-Bench": "Michael4933/MIG-Bench",
}
_RECORD, _LOCK = "get_data.json", "get_data.lock"
_SPARE = 1 << 30  # bytes of the disk that are left free


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be got.

    Attributes:
      commit: of the repository.
      archives: those wanted.
      files: their files and those that belong to no archive, by name.
    """

    commit: str
    archives: tuple[Archive, ...]
    files: dict[str, RemoteFile]

    @property
    def plain(self) -> list[str]:
        """Names of the files that belong to no archive."""
        known = {name for archive in self.archives for name in archive.volumes}
        return [name for name in self.files if name not in known]

    def size(self, names: Sequence[str]) -> int:
        """The bytes of some of the files."""
        return sum(self.files[name].size for name in names)


def make_plan(dataset: str, subsets: Sequence[str], revision: str) -> Plan:
    """Asks the hub what there is, and chooses what is wanted; downloads nothing.

    Args:
      dataset: the data set's name.
      subsets: names of archives without their endings; () for all.
      revision: branch, tag or commit.

    Raises:
      DataError: if the hub can't be asked, or lacks a file of an archive.
      ConfigError: if there is no such subset.
    """
    commit, listed = hub.listing(REPOSITORIES[dataset], revision)
    files = {each.name: each for each in listed if not each.name.startswith(".git")}
    archives, others = volumes.group(files)
    by_name = {archive.name.partition(".")[0]: archive for archive in archives}
    if unknown := [name for name in subsets if name not in by_name]:
        raise ConfigError(
            f"--subset={unknown[0]}: {dataset} has no archive of that name; those there are "
            f"{', '.join(by_name)}"
        )
    chosen = tuple(by_name[name] for name in subsets or by_name)
    names = [*others, *(name for archive in chosen for name in archive.volumes)]
    return Plan(commit, chosen, {name: files[name] for name in names})


class Folder:
    """A data set's folder, and the record of what was done there.

    Args:
      path: the folder.
      commit: the commit that is got; files checked for another are checked anew.
    """

    def __init__(self, path: pathlib.Path, commit: str):
        self.path, self._record = path, path / _RECORD
        found = places.read_object(self._record) or {}
        if found.get("commit", commit) != commit:
            before = found["commit"]
            say(f"{path}: was got at commit {before}, now at {commit}; what differs is got again")
        self._checked: dict[str, Any] = dict(found.get("checked") or {})
        self._unpacked: dict[str, Any] = dict(found.get("unpacked") or {})
        self._commit = commit

    def has(self, file: RemoteFile) -> bool:
        """Whether a file is there whole, as was checked before."""
        path = self.path / file.name
        known = self._checked.get(file.name) == [file.size, file.sha256]
        return known and path.is_file() and path.stat().st_size == file.size

    def check(self, file: RemoteFile) -> bool:
        """Compares a file with what the hub says of it, and records that it is whole."""
        path = self.path / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if file.sha256 and hashes.hash_file(path) != file.sha256:
            return False
        self._checked[file.name] = [file.size, file.sha256]
        self._write()
        return True

    def is_unpacked(self, archive: Archive, plan: Plan) -> bool:
        """Whether an archive of this content has been unpacked."""
        return self._unpacked.get(archive.name) == _content(archive, plan)

    def unpacked(self, archive: Archive, plan: Plan) -> None:
        """Records that an archive has been unpacked."""
        self._unpacked[archive.name] = _content(archive, plan)
        self._write()

    def _write(self) -> None:
        facts = {"commit": self._commit, "checked": self._checked, "unpacked": self._unpacked}
        outputs.replace_text(self._record, json.dumps(facts, indent=1) + "\n")


def _content(archive: Archive, plan: Plan) -> list[list[Any]]:
    return [list(plan.files[name]) for name in archive.volumes]


def table(plan: Plan, folder: Folder) -> str:
    """Returns a line for each archive and file: its size, and what is done."""
    lines = []
    for archive in plan.archives:
        state = "unpacked" if folder.is_unpacked(archive, plan) else "to get"
        count = f"{len(archive.volumes)} files" if len(archive.volumes) > 1 else "1 file"
        lines.append((archive.name, count, plan.size(archive.volumes), state))
    for name in plan.plain:
        state = "there" if folder.has(plan.files[name]) else "to get"
        lines.append((name, "1 file", plan.files[name].size, state))
    width = max((len(line[0]) for line in lines), default=0)
    rows = [f"{n.ljust(width)}  {c:>7}  {size / 1e9:8.2f} GB  {s}" for n, c, size, s in lines]
    whole = plan.size(list(plan.files)) / 1e9
    return "\n".join([*rows, f"{'all'.ljust(width)}  {'':>7}  {whole:8.2f} GB"])


def needed(plan: Plan, folder: Folder, delete_archives: bool) -> int:
    """Returns the bytes that the disk must still take at the fullest, archives and files together.

    Pictures hardly shrink in an archive, so what is in one is counted as large as it. With
    `delete_archives` each archive is deleted before the next is got.
    """
    open_ones = [each for each in plan.archives if not folder.is_unpacked(each, plan)]
    held = most = plan.size([n for n in plan.plain if not folder.has(plan.files[n])])
    for archive in open_ones:
        size = plan.size(archive.volumes)
        there = plan.size([name for name in archive.volumes if folder.has(plan.files[name])])
        most = max(most, held + 2 * size - there)
        held += size - there if delete_archives else 2 * size - there
    return most


def get(dataset: str, plan: Plan, folder: Folder, *, delete_archives: bool) -> None:
    """Downloads and unpacks a data set, or goes on with it.

    Args:
      dataset: the data set's name.
      plan: what is wanted.
      folder: the data set's folder, in the image root.
      delete_archives: whether an archive's files are deleted once it is unpacked.

    Raises:
      ConfigError: if there is too little free space, or another process is at work there.
      DataError: if a file can't be had, is damaged, or an archive is not to be trusted.
    """
    path = folder.path
    outputs.make_folder(path)
    lock = lock_of(path / _LOCK)
    lock.acquire()
    try:
        check_room(path, needed(plan, folder, delete_archives))
        for name in plan.plain:
            _download(dataset, plan, name, folder)
        for archive in plan.archives:
            if not folder.is_unpacked(archive, plan):
                for name in archive.volumes:
                    _download(dataset, plan, name, folder)
                _unpack(dataset, archive, plan, folder)
                folder.unpacked(archive, plan)
            if delete_archives:
                for name in archive.volumes:
                    (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); make room or give another "
            "--output_dir, and run again to go on"
        ) from None
    finally:
        lock.release()


def check_room(path: pathlib.Path, size: int) -> None:
    """Checks that a disk has room for so many bytes.

    Raises:
      ConfigError: if it hasn't.
    """
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if size and size + _SPARE > free:
        raise ConfigError(
            f"{path}: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; give "
            "another --output_dir, fewer of --subset, or --delete_archives"
        )


def _download(dataset: str, plan: Plan, name: str, folder: Folder) -> None:
    file = plan.files[name]
    if folder.has(file) or folder.check(file):
        return
    (folder.path / name).unlink(missing_ok=True)
    print(f"{name}: downloading {file.size / 1e9:.2f} GB", flush=True)
    hub.fetch(REPOSITORIES[dataset], plan.commit, name, folder.path)
    if not folder.check(file):
        raise DataError(
            f"{folder.path / name}: isn't what the hub says (size or SHA-256); run again to get "
            "it anew"
        )


def _unpack(dataset: str, archive: Archive, plan: Plan, folder: Folder) -> None:
    with unpack.opened(archive, folder.path, dataset) as source:
        members = source.members()
        ours = {*plan.files, _RECORD, _LOCK}
        if found := [member.name for member in members if str(member.target) in ours]:
            raise DataError(
                f"{archive.name}: its member {found[0][:200]!r} would replace a file of the data "
                "set; nothing was unpacked, get the archive from where it was published"
            )
        size = sum(member.size for member in members)
        there = sum(member.size for member in members if (folder.path / member.target).is_file())
        check_room(folder.path, size - there)
        print(f"{archive.name}: {len(members)} files, {size / 1e9:.2f} GB", flush=True)
        unpack.unpack(source, members, folder.path)

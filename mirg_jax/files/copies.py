"""Copies of models in stores, kept on a disk for the libraries that read paths alone."""

import concurrent.futures
import hashlib
import json
import pathlib
import posixpath
import shutil
from typing import Any

import fsspec
from etils import epath

from mirg_jax.errors import CheckpointError
from mirg_jax.files import outputs, places
from mirg_jax.files.streams import say

_ENDINGS = (".json", ".txt", ".jinja", ".safetensors")
_TOLD = 10**8  # bytes; larger copies are announced
# By store: what tells one content of a file from another.
_VERSION = ("generation", "etag", "ETag", "md5Hash", "mtime", "LastModified", "last_modified")


def copied(folder: epath.Path) -> pathlib.Path:
    """Returns a copy of a model's folder on a disk: its config, tokenizer and weights.

    Files that are there from before are not fetched again, unless they have changed since. The
    copies lie in ~/.cache/mirg_jax/stores, or below XDG_CACHE_HOME.

    Args:
      folder: the URL of the folder.

    Raises:
      CheckpointError: if the folder is not there, can't be read, or there is no room.
    """
    try:
        with places.reached(folder):
            system, name = fsspec.url_to_fs(str(folder))
            found = [each for each in system.ls(name, detail=True) if each["type"] == "file"]
            found = [each for each in found if each["name"].endswith(_ENDINGS)]
    except OSError as error:
        raise CheckpointError(
            f"{folder}: can't be read ({error.strerror}); check the address and the credentials"
        ) from None
    facts = sorted(_facts(each) for each in found)
    digest = hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()
    target = places.cache_folder("stores") / digest[:32]
    missing = [each for each in found if not (target / _name(each)).exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        _check_room(folder, target, sum(each["size"] for each in missing))
        with places.reached(folder), concurrent.futures.ThreadPoolExecutor(8) as pool:
            for job in [pool.submit(_fetch, system, each["name"], target) for each in missing]:
                job.result()
    except OSError as error:
        raise CheckpointError(
            f"{folder}: can't be copied to {target} ({error.strerror}); free space there, or set "
            "XDG_CACHE_HOME to another folder"
        ) from None
    return target


def _name(info: dict[str, Any]) -> str:
    return posixpath.basename(info["name"])


def _facts(info: dict[str, Any]) -> list[str]:
    version = next((str(info[key]) for key in _VERSION if key in info), "")
    return [_name(info), str(info["size"]), version]


def _check_room(folder: epath.Path, target: pathlib.Path, size: int) -> None:
    if size > _TOLD:
        say(f"{folder}: copying {size / 1e9:.1f} GB to {target}, where a later start finds it")
    free = shutil.disk_usage(target).free
    if size > free:
        raise OSError(None, f"{size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _fetch(system: fsspec.AbstractFileSystem, name: str, target: pathlib.Path) -> None:
    """Copies a file; other processes may do the same."""
    kept = target / posixpath.basename(name)
    with outputs.whole(kept) as part:
        system.get_file(name, str(part))

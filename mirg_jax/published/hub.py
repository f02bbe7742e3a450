"""What a data set's repository on the Hugging Face hub holds, and its files."""

import os
import pathlib
from typing import NamedTuple

from mirg_jax.errors import DataError, one_line


class RemoteFile(NamedTuple):
    """A file of a repository; `sha256` is "" where the hub doesn't tell it, as of small files."""

    name: str
    size: int
    sha256: str


def listing(repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """Returns the commit that a revision is now, and its files.

    Raises:
      DataError: if the hub can't be reached, or has no such data set or revision.
    """
    try:
        from huggingface_hub import HfApi

        found = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # of the libraries below it too
        raise _failure(repository, error) from None
    files = [
        RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else "")
        for each in found.siblings or ()
    ]
    return found.sha or revision, files


def fetch(repository: str, commit: str, name: str, folder: pathlib.Path) -> None:
    """Downloads a file of a data set into a folder; goes on with a part that is there.

    Raises:
      DataError: if it can't be had.
    """
    try:
        from huggingface_hub import hf_hub_download

        hf_hub_download(repository, name, repo_type="dataset", revision=commit, local_dir=folder)
    except Exception as error:
        raise _failure(f"{repository}/{name}", error) from None


def _failure(what: str, error: Exception) -> DataError:
    given = [
        name for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY") if name in os.environ
    ]
    check = ", ".join(["the network connection", "the free space", *given])
    return DataError(
        f"{what}: can't be had from the Hugging Face hub ({type(error).__name__}: "
        f"{one_line(error)}); check {check}, and run again to go on"
    )

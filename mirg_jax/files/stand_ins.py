"""What lies in the place of a file that was not downloaded itself."""

import pathlib

_PAGES = (b"<!doctype html", b"<html")


def find_stand_in(data: bytes) -> tuple[str, str] | None:
    """Returns what the beginning of a file is in place of the file, and what to do.

    Args:
      data: the beginning, some hundred bytes.

    Returns:
      Words for both; None if it is no such thing.
    """
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "fetch the file itself by `git lfs pull`"
    if data[:20].lower().startswith(_PAGES):
        return "a page of HTML", "download the file itself"
    return None


def find_stand_in_of(path: pathlib.Path) -> tuple[str, str] | None:
    """Returns the same of a file; None also if it can't be read."""
    try:
        with open(path, "rb") as file:
            return find_stand_in(file.read(512))
    except OSError:
        return None

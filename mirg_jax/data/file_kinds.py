"""What a file that isn't JSON looks like, and how its rows become JSON."""

import re

from mirg_jax.files.stand_ins import find_stand_in

# How files of other kinds begin: the bytes, what the kind is called, and what to do.
_UNPACK = "unpack it"
_AS_LINES = "write its rows as JSON lines, such as pandas' to_json(…, orient='records', lines=True)"
_NO_ROWS = "name the file that lists the rows"
_BEGINNINGS = (
    (b"\x89PNG", "a PNG image", _NO_ROWS),
    (b"\xff\xd8\xff", "a JPEG image", _NO_ROWS),
    (b"GIF8", "a GIF image", _NO_ROWS),
    (b"RIFF", "an image or sound in RIFF", _NO_ROWS),
    (b"%PDF", "a PDF document", _NO_ROWS),
    (b"\x1f\x8b", "gzip data", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd data", _UNPACK),
    (b"\xfd7zXZ", "xz data", _UNPACK),
    (b"BZh", "bzip2 data", _UNPACK),
    (b"PAR1", "a Parquet table", _AS_LINES),
    (b"ARROW1", "an Arrow table", _AS_LINES),
    (b"\xff\xff\xff\xff", "an Arrow table", _AS_LINES),
    (b"\x89HDF", "an HDF5 file", _AS_LINES),
    (b"SQLite format 3", "an SQLite database", _AS_LINES),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
)
_YAML = re.compile(r"(?:---|%YAML|#.*|- .*|[\w.\- ]{1,99}:(?: .*)?)")


def looks_like(data: bytes) -> tuple[str, str] | None:
    """Returns what a file's content is that begins as JSON rows don't, and what to do.

    Args:
      data: the content, or its beginning.

    Returns:
      Words for both; None if it may be JSON.
    """
    data = data[:4096].removeprefix(b"\xef\xbb\xbf")
    if found := find_stand_in(data):
        return found
    for beginning, kind, remedy in _BEGINNINGS:
        if data.startswith(beginning):
            return kind, remedy
    if data[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    text = data.decode("utf-8", errors="replace").lstrip()
    if re.match(r"\[?\s*\{'", text):
        return "rows as Python prints them", "write them by json.dumps"
    if not text or text[0] in "[{":
        return None
    line = text.splitlines()[0]
    if text[0] == "<":
        return "a page of HTML or XML", "download the file itself"
    if _YAML.fullmatch(line):
        return "YAML", "write its rows as JSON"
    for mark, kind in (("\t", "tabs"), (",", "commas"), (";", "semicolons")):
        if mark in line:
            return f"a table divided by {kind} (CSV)", _AS_LINES
    return "plain text" if text.isprintable() or "\n" in text else "binary data", _NO_ROWS

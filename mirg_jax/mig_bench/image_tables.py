"""Tables of Markdown in a response, with a column of images, or with a column for each image."""

import re
from collections.abc import Iterator

from mirg_jax.grounding.image_words import HAN_IMAGE, IMAGE, WORDING

_LINE = re.compile(r"[^\n]*\n?")
_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_COLUMN = re.compile(
    rf"[\s*`]*(?:(?:target|selected|predicted|in)[ _-])?(?:{IMAGE}|page|panel|figure|{HAN_IMAGE})"
    r"(?:[ _-]?(?:index|idx|id|number|num|no\.?|name|file|#|编号|序号))?[\s*`]*",
    re.IGNORECASE,
)


# Headings of a table with a row for each field, as "Field | Value".
_FIELDS = re.compile(
    r"(?:fields?|propert(?:y|ies)|keys?|attributes?|items?|parameters?|字段|)", re.I
)
_VALUES = re.compile(r"(?:values?|answers?|results?|details?|值|)", re.IGNORECASE)


def find_cells(text: str) -> Iterator[tuple[int, str]]:
    """Yields where what a table says of an image begins to count, and its words for the image.

    That is where a row begins, with what its cell in the column of images holds, or the cell behind
    "Image" in a table with a row for each field; or where a cell begins below the name of an image.
    """
    if "|" not in text or "-" not in text:
        return
    before, column, headings, has_fields = "", None, [""], False
    for line in _LINE.finditer(text):
        row = line[0].rstrip("\r\n")
        if "|" not in row:
            column, headings, has_fields = None, [""], False
        elif _RULE.fullmatch(row):
            headings = [cell.strip(" \t*`") for cell in _cells(before)]
            columns = [bool(_COLUMN.fullmatch(cell)) for cell in headings]
            column = columns.index(True) if any(columns) else None
            first, *others = headings
            has_fields = len(others) == 1 and bool(
                _FIELDS.fullmatch(first) and _VALUES.fullmatch(others[0])
            )
            headings = [cell if WORDING.fullmatch(cell) else "" for cell in headings]
        elif has_fields:
            name, *values = _cells(row)
            if _COLUMN.fullmatch(name) and values and (cell := values[0].strip(" \t*`\"'")):
                yield line.start(), cell
        elif column is not None:
            cells = _cells(row)
            if column < len(cells) and (cell := cells[column].strip(" \t*`\"'")):
                yield line.start(), cell
        elif any(headings):
            start = line.start() + len(row) - len(row.lstrip().removeprefix("|"))
            for heading, cell in zip(headings, _cells(row), strict=False):
                if heading:
                    yield start, heading
                start += len(cell) + 1
        before = row


def _cells(row: str) -> list[str]:
    return row.strip().removeprefix("|").removesuffix("|").split("|")

"""MGrounding-630k as it is published → single questions, and every row accounted for."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from mirg_jax.data.examples import Example, Rejected, read_examples
from mirg_jax.errors import DataError

_DATASET = "MGrounding-630k"


@dataclasses.dataclass(frozen=True)
class File:
    """What came of a file: rows = rows_kept + rows_left_out, and the same of the questions."""

    name: str
    sha256: str
    rows: int
    rows_left_out: int  # with all their questions
    questions: int
    questions_left_out: int


@dataclasses.dataclass(frozen=True)
class Ingested:
    """Questions with unique ids, in the order of the files, and what was left out."""

    questions: list[Example]
    left_out: list[Rejected]
    files: list[File]


def kind(reason: str) -> str:
    """A reason without its particulars, to count by."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\[[^\[\]]*\]|-?\d+(\.\d+)?", "…", reason)


Source = str | pathlib.Path | Sequence[str | pathlib.Path]


def find_files(source: Source) -> dict[str, pathlib.Path]:
    """The files of a source by the names that they go by: files as given, and of a folder all
    .json files below it but those in hidden folders.

    Raises:
      DataError: there is none.
    """
    given = [source] if isinstance(source, str | pathlib.Path) else source
    paths = [pathlib.Path(path).absolute() for path in given]
    found: list[pathlib.Path] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*.json")
                if not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not files:
                raise DataError(f"{path}: holds no .json file; give the data set's folder or files")
        found += files
    if not found:
        raise DataError("no input: give the data set's folder or files")
    roots = {str(path if path.is_dir() else path.parent) for path in paths}
    root = os.path.commonpath(roots)
    return {str(path.relative_to(root)): path for path in found}


def ingest(source: Source) -> Ingested:
    """Reads files, or a folder of them as the data set has, into questions.

    Turns become questions; image paths begin at the data set's folder, wherever the file says it
    is; an id that is there already gets a number behind it; a question that is there already, of
    the same images and with the same answer, is left out.

    Raises:
      DataError: for a file that can't be read or is of no known format.
    """
    questions, left_out, files = [], [], []
    ids: collections.Counter[str] = collections.Counter()
    first: dict[tuple, str] = {}
    for name, path in find_files(source).items():
        folder = name.removesuffix(path.name)
        examples, rejected = read_examples(path)
        bad = [dataclasses.replace(row, source=folder + row.source) for row in rejected]
        good = []
        for example in examples:
            ids[example.id] += 1
            example = dataclasses.replace(
                example,
                id=example.id if ids[example.id] == 1 else f"{example.id}~{ids[example.id]}",
                images=tuple(map(_from_dataset, example.images)),
                source=folder + example.source,
            )
            what = (example.images, example.question, example.targets)
            if what in first:
                reason = f"the same question as {first[what]!r}"
                bad.append(Rejected(example.source, example.id, reason))
            else:
                first[what] = example.id
                good.append(example)
        kept, lost = _rows(good), _rows(bad)
        files.append(
            File(
                name,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                rows=len(kept | lost),
                rows_left_out=len(lost - kept),
                questions=len(good) + len(bad),
                questions_left_out=len(bad),
            )
        )
        questions += good
        left_out += bad
    return Ingested(questions, left_out, files)


def _rows(items: Iterable[Example | Rejected]) -> set[str]:
    return {item.source for item in items}


def _from_dataset(path: str) -> str:
    """The path from the data set's folder on, where that folder is in it."""
    parts = pathlib.PurePosixPath(path).parts
    return "/".join(parts[parts.index(_DATASET) :]) if _DATASET in parts else path

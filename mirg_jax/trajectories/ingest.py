"""Reads MGrounding-630k as it is published into single questions, and accounts for every row."""

import collections
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

from mirg_jax.data.examples import Example, Rejected, read_examples
from mirg_jax.errors import DataError

_DATASET = "MGrounding-630k"

Source = str | pathlib.Path | Sequence[str | pathlib.Path]


@dataclasses.dataclass(frozen=True)
class IngestedFile:
    """Counts of a file.

    Attributes:
      rows, questions: all that the file holds.
      rows_left_out: rows of which no question is used.
      questions_left_out: questions that are not used.
    """

    name: str
    sha256: str
    rows: int
    rows_left_out: int
    questions: int
    questions_left_out: int


@dataclasses.dataclass(frozen=True)
class Ingested:
    """Questions with unique ids, in the order of the files, and what was left out."""

    questions: list[Example]
    left_out: list[Rejected]
    files: list[IngestedFile]


def find_files(source: Source) -> dict[str, pathlib.Path]:
    """Finds the files of a source.

    These are files as given, and all .json files below a folder, or all .jsonl files if it has no
    others, except those in hidden folders; .json.gz and .jsonl.gz are as good.

    Returns: the files by name, which is their path relative to the folder that all have in common.

    Raises:
      DataError: there is no file.
    """
    given = [source] if isinstance(source, str | pathlib.Path) else source
    paths = [pathlib.Path(path).absolute() for path in given]
    found: list[pathlib.Path] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = _files_below(path, ".json") or _files_below(path, ".jsonl")
            if not files:
                raise DataError(
                    f"{path}: holds no .json or .jsonl file; give the data set's folder or files"
                )
        found += files
    if not found:
        raise DataError("no input: give the data set's folder or files")
    roots = {str(path if path.is_dir() else path.parent) for path in paths}
    root = os.path.commonpath(roots)
    return {str(path.relative_to(root)): path for path in found}


def _files_below(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    found = itertools.chain(folder.rglob(f"*{ending}"), folder.rglob(f"*{ending}.gz"))
    return sorted(
        file
        for file in found
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def ingest(source: Source) -> Ingested:
    """Reads files, or a folder with the data set's layout, into questions.

    Each turn of a conversation becomes a question, without the thoughts that it may have: they are
    made anew. Image paths are made relative to the folder that holds the data set's folder. Of
    questions with the same id, the second gets "~2" appended, and so on. A question that repeats an
    earlier one, with the same images and answer, is left out.

    Raises:
      DataError: for a file that can't be read or has an unknown format.
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
                response=None,
                source=folder + example.source,
            )
            content = (example.images, example.question, example.targets)
            if content in first:
                reason = f"the same question as {first[content]!r}"
                bad.append(Rejected(example.source, example.id, reason))
            else:
                first[content] = example.id
                good.append(example)
        used, unused = _rows(good), _rows(bad)
        files.append(
            IngestedFile(
                name,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                rows=len(used | unused),
                rows_left_out=len(unused - used),
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
    """Drops the folders above the data set's folder, if the path has it."""
    parts = pathlib.PurePosixPath(path).parts
    return "/".join(parts[parts.index(_DATASET) :]) if _DATASET in parts else path

"""Reading files of predictions, a line of JSON for each answered row, and what is beside them."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mirg_jax.data.file_kinds import looks_like
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.json_rows import read_rows
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import lines, places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.benchmark import Row

_IMAGES = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{32})?")  # as `ImageHashes.of`, or its first half


def load_predictions(path: str | Place, count: int) -> list[str | None]:
    """Reads a file of predictions, one line of JSON each: `{"index": i, "response": "…"}`.

    Args:
      path: the JSONL file, or a JSON list of the same objects, in any order. Other keys, blank
        lines and a line at the end that was not finished are ignored.
      count: number of rows in the benchmark; an index is from 0 to `count - 1`.

    Returns:
      A response for every row of the benchmark, None where the file has none.

    Raises:
      DataError: if the file is missing or contains no prediction, or a line is malformed, repeats
        an index, or has an index out of range.
    """
    responses: list[str | None] = [None] * count
    for where, entry in _entries(path):
        match entry:
            case {"index": int(index), "response": str(response)} if not isinstance(index, bool):
                pass
            case _:
                raise DataError(f'{where}: expected {{"index": integer, "response": "text"}}')
        if not 0 <= index < count:
            raise DataError(f"{where}: index {index} is not a row of the benchmark, 0..{count - 1}")
        if responses[index] is not None:
            raise DataError(f"{where}: a second response for index {index}; keep one a row")
        responses[index] = response
    if count and all(response is None for response in responses):
        raise DataError(f"{path}: holds no predictions")
    if not _is_list(path) and lines.is_torn(path):
        say(f"{path}: its last line was not finished, and is left out")
    return responses


def recorded_benchmark(path: str | Place) -> str | None:
    """Returns the hash of the benchmark that an evaluation's folder was made on.

    Args:
      path: a file of the folder, beside its run.json.

    Returns:
      The hash; "" if run.json doesn't record it, or can't be read; None if there is no run.json.
    """
    return _benchmark_of(_record(path))


def _benchmark_of(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    found = record.get("benchmark_sha256")
    return found if isinstance(found, str) else ""


def _record(path: str | Place) -> dict[str, Any] | None:
    """Returns the run.json beside a file: {} if it can't be read, None if there is none."""
    return places.read_object(places.of(path).parent / "run.json")


def check_record(path: str | Place, benchmark: str, sha256: str, **how: Any) -> None:
    """Checks that predictions in an evaluation's folder were made on a benchmark.

    If the folder doesn't record its benchmark, a line says so, and if the predictions are now read
    otherwise than they were asked for. Predictions of other systems, with no run.json beside them,
    are not checked.

    Args:
      path: the file of predictions.
      benchmark: path of the benchmark.
      sha256: hash of its content.
      **how: how they are read, by the names of run.json.

    Raises:
      ConfigError: if it is another benchmark.
    """
    record = _record(path)
    recorded = _benchmark_of(record)
    if recorded == "":
        say(
            f"{path}: run.json beside it doesn't record benchmark_sha256, so it isn't checked that "
            f"the predictions were made on {benchmark}"
        )
    elif recorded not in (None, sha256):
        raise ConfigError(
            f"{path}: the predictions were made on a benchmark of other content than {benchmark} "
            "(benchmark_sha256 in run.json beside them); give that one, or, if the rows are the "
            "same, copy the predictions to a folder without run.json"
        )
    record = dict(record or {})
    if family := families.OF_COORDINATES.get(str(record.get("coordinates"))):  # of evaluate.py
        record.setdefault("family", family)
    others = [name for name, value in how.items() if record.get(name, value) != value]
    if others:
        asked = ", ".join(f"{name}={record[name]}" for name in others)
        now = ", ".join(f"{name}={how[name]}" for name in others)
        say(
            f"{path}: was asked for with {asked} (run.json beside it), and is now scored with {now}"
        )


def changed_images(
    path: str | Place, rows: Iterable[Row], images: ImageHashes
) -> tuple[list[Row], int]:
    """Compares the images of rows with those that predictions were made about.

    Args:
      path: the file of predictions.
      rows: the rows to compare, as far as the file has predictions for them.
      images: hashes of their images. One that can't be read any more is not compared.

    Returns:
      The rows whose images are others, and the number of predictions that don't record theirs.

    Raises:
      DataError: if the file can't be read.
    """
    recorded = {}
    for _, entry in _entries(path):
        if isinstance(entry, dict) and isinstance(entry.get("index"), int):
            found = entry.get("images")
            known = isinstance(found, str) and _IMAGES.fullmatch(found)
            recorded[entry["index"]] = found if known else None
    about = [(row, recorded[row.index]) for row in rows if row.index in recorded]
    changed = [row for row, found in about if found and images.differ(row.images, found)]
    return changed, sum(not found for _, found in about)


def say_changed_images(path: str | Place, rows: Iterable[Row], images: ImageHashes) -> None:
    """Says in a line if predictions were made about other images than the rows have now.

    Args:
      path: the file of predictions; those of other systems don't record their images.
      rows: the rows.
      images: hashes of their images.

    Raises:
      DataError: if the file can't be read.
    """
    changed, _ = changed_images(path, rows, images)
    if changed:
        first = changed[0]
        say(
            f"{path}: {len(changed)} predictions were made about other images than those below "
            f"the image root now (the first: row {first.index}, {', '.join(first.images)}); give "
            "the image root that they were asked with, or ask again"
        )


def _is_list(path: str | Place) -> bool:
    """Returns whether a file holds a JSON list instead of lines.

    Raises:
      DataError: if it can't be read.
    """
    if places.is_url(path):
        return False  # there it is one of ours
    try:
        with places.open_file(path) as file:
            return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(100)) is not None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _entries(path: str | Place) -> Iterator[tuple[str, Any]]:
    """Yields each entry of a file of responses, after the place where it stands."""
    if _is_list(path):
        for number, entry in enumerate(read_rows(path)):
            yield f"{path} entry {number}", entry
        return
    for line in lines.read(path):
        try:
            if text := line.text.decode("utf-8-sig").strip():
                yield f"{path} line {line.number}", json.loads(text)
        except (ValueError, RecursionError) as error:
            if line.number == 1 and (kind := looks_like(line.text)):
                raise DataError(
                    f"{path}: looks like {kind[0]}, where JSON lines or a JSON list are needed; "
                    f"{kind[1]}"
                ) from None
            raise DataError(f"{path} line {line.number}: not valid JSON ({error})") from error

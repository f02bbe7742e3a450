"""Files of responses: a line of JSON for each answered row of the benchmark."""

import json
import pathlib

from mirg_jax.data.json_rows import read_text
from mirg_jax.errors import DataError
from mirg_jax.files import lines
from mirg_jax.files.streams import say


def load_predictions(path: str | pathlib.Path, count: int) -> list[str | None]:
    """Reads responses, one line of JSON each: `{"index": i, "response": "…"}`, in any order.

    Args:
      path: the JSONL file. Other keys on a line are ignored, and so are blank lines and a line at
        the end that was not finished.
      count: rows in the benchmark; an index runs from 0 to `count - 1`.

    Returns:
      A response for every row of the benchmark, None where the file has none.

    Raises:
      DataError: the file is missing or holds no prediction, or a line is malformed, repeats an
        index, or has one out of range.
    """
    responses: list[str | None] = [None] * count
    text = read_text(path)
    whole = lines.whole(text)
    for number, line in enumerate(whole.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
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
    if whole != text:
        say(f"{path}: its last line was not finished, and is left out")
    return responses

"""Questions about several images with their answers, and the three file formats that hold them.

- MGrounding-630k: a JSON list of rows `{id, images, conversations: [{from, value}], type}`, boxes
  on the grid inside the answers' text, several turns a row.
- MIG-Bench: a JSON list of rows `{task, images, question, answer, additional_info, need_format}`,
  one box a row in fractions.
- Trajectories: JSON lines `{id, task, images, question, targets: [{image, box, label}], response}`.

Rows count from 0. A row that can't be used is rejected with a reason; it never stops the others.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mirg_jax.errors import DataError
from mirg_jax.grounding import tasks
from mirg_jax.grounding.boxes import GRID, Box, fraction_to_grid, grid_to_fraction, is_valid
from mirg_jax.grounding.grammar import (
    BOX_START,
    ORDINALS,
    GroundedObject,
    find_image_index,
    find_objects,
    format_box,
    format_object,
)

IMAGE_MARK = "<image>"

# MIG-Bench's authors append a note on the format to the questions of the other tasks.
_NO_FORMAT_NOTE = ("group_grounding", "object_tracking")
_TYPE_OF_TASK = {task: kind for kind, task in tasks.MGROUNDING_TYPES.items()}
# A subset of MGrounding-630k that describes boxes instead of finding them.
_CAPTIONING = re.compile(r"(?<![a-z])gg_reg(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A box to be found; its image counts from 1, None where the file doesn't say."""

    box: Box
    image: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Example:
    """A question about images and the boxes that answer it.

    Attributes:
      task: as in `grounding.tasks`.
      images: paths as the file gives them, relative to the data set's image root.
      question: may hold `<image>` marks, at most one an image.
      response: a whole trajectory, thoughts and answer, where the file has one.
      source: file and row, such as "train.json row 12"; not part of what the example is.
    """

    id: str
    task: str
    images: tuple[str, ...]
    question: str
    targets: tuple[Target, ...]
    response: str | None = None
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rejected:
    """A row, or a turn of a row, that can't be used."""

    source: str
    id: str
    reason: str


def read_examples(path: str | pathlib.Path) -> tuple[list[Example], list[Rejected]]:
    """Reads a file of any of the three formats, recognised by its content.

    Raises:
      DataError: the file is missing, unreadable, cut, empty, or of no known format.
    """
    path = pathlib.Path(path)
    rows, read_row = _load(path)
    examples, rejected = [], []
    for index, row in enumerate(rows):
        source = f"{path.name} row {index}"
        try:
            if not isinstance(row, dict):
                raise DataError(f"the row is not an object but {_kind(row)}")
            for item in read_row(row, index, source):
                (examples if isinstance(item, Example) else rejected).append(item)
        except DataError as error:
            name = str(row.get("id", "")) if isinstance(row, dict) else ""
            rejected.append(Rejected(source, name, str(error)))
    return examples, rejected


def write_trajectories(path: str | pathlib.Path, examples: Iterable[Example]) -> None:
    """Writes the trajectory format; everything but `source` is kept."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(map(to_line, examples))


def to_line(example: Example) -> str:
    """A line of the trajectory format."""
    row = asdict(example)
    del row["source"]
    return json.dumps(row) + "\n"


def write_mgrounding(path: str | pathlib.Path, examples: Iterable[Example]) -> None:
    """Writes the MGrounding-630k format, one row an example; responses are not kept.

    The answer says which image it means where the question doesn't.
    """
    rows = []
    for example in examples:
        row = {
            "id": example.id,
            "images": example.images,
            "conversations": [
                {"from": "human", "value": example.question},
                {"from": "gpt", "value": _plain_answer(example)},
            ],
            "type": _TYPE_OF_TASK.get(example.task, example.task),
        }
        if tasks.task_of_mgrounding(row) != example.task:
            raise DataError(
                f"example {example.id!r} of task {example.task!r} would be read back as another "
                "task; change its id"
            )
        rows.append(row)
    _write_json(path, rows)


def write_mig_bench(path: str | pathlib.Path, examples: Iterable[Example]) -> None:
    """Writes the MIG-Bench format, and the id, which the benchmark itself doesn't have.

    Responses and labels are not kept.

    Raises:
      DataError: an example has not exactly one box.
    """
    rows = []
    for example in examples:
        if len(example.targets) != 1:
            raise DataError(
                f"example {example.id!r} has {len(example.targets)} boxes and a row of MIG-Bench "
                "holds one; write it as a trajectory"
            )
        (target,) = example.targets
        said = find_image_index(example.question, len(example.images))
        info = ""
        if target.image not in (None, said):
            info = f"It is {_in_image(target.image)}. {format_box(target.box)}. "
        rows.append(
            {
                "id": example.id,
                "task": example.task,
                "images": example.images,
                "question": example.question,
                "answer": grid_to_fraction(target.box),
                "additional_info": info,
                "need_format": example.task not in _NO_FORMAT_NOTE,
            }
        )
    _write_json(path, rows)


# Files --------------------------------------------------------------------------------------------

_ReadRow = Callable[[dict[str, Any], int, str], Iterator[Example | Rejected]]


def _load(path: pathlib.Path) -> tuple[list[Any], _ReadRow]:
    """The rows of a file and what reads them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; get or make it again")

    if path.suffix == ".jsonl":
        # Not splitlines(): it also splits at characters that JSON allows inside a string.
        lines = enumerate(text.split("\n"), start=1)
        return [_parse(path, line, n) for n, line in lines if line.strip()], _read_trajectory

    rows = _parse(path, text)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds {_kind(rows)} where a list of rows is needed")
    if not rows:
        raise DataError(f"{path}: the list of rows is empty; get or make the file again")
    for row in rows:
        if isinstance(row, dict) and "conversations" in row:
            return rows, _read_mgrounding
        if isinstance(row, dict) and {"question", "answer"} <= row.keys():
            return rows, _read_mig_bench
    raise DataError(
        f'{path}: no row has "conversations" (MGrounding-630k) or "question" and "answer" '
        "(MIG-Bench); give such a file, or trajectories named .jsonl"
    )


def _parse(path: pathlib.Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, column = error.lineno + first_line - 1, error.colno
        raise DataError(
            f"{path}: not valid JSON at line {line}, column {column} ({error.msg}); "
            "the file may be cut, get or make it again"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
        raise DataError(f"{path}: not usable JSON from line {first_line} on ({error})") from None


def _write_json(path: str | pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)


# Rows ---------------------------------------------------------------------------------------------


def _read_trajectory(row: dict[str, Any], index: int, source: str) -> Iterator[Example]:
    images = _images(row)
    question = _question(_text(row, "question"), len(images))
    response = None if row.get("response") is None else _text(row, "response")
    targets = []
    for target in _list(row, "targets"):
        if not isinstance(target, dict):
            raise DataError(f"a target is not an object but {_kind(target)}")
        image = target.get("image")
        if image is not None and (type(image) is not int or not 1 <= image <= len(images)):
            raise DataError(f"a target's image is {_quote(image)}, not one of 1..{len(images)}")
        box = _box(target.get("box"), GRID, whole=True)
        targets.append(Target(box, image, _text(target, "label")))
    yield Example(_id(row), _text(row, "task"), images, question, tuple(targets), response, source)


def _read_mig_bench(row: dict[str, Any], index: int, source: str) -> Iterator[Example]:
    images, task = _images(row), _text(row, "task")
    question = _question(_text(row, "question"), len(images))
    box = fraction_to_grid(_box(row.get("answer"), 1))
    if not is_valid(box):
        raise DataError(f"the box {row['answer']} is too small for a grid of {GRID}")
    # Where finding the image is the task, this holds the answer in words; elsewhere other things.
    info = row.get("additional_info")
    where = info if isinstance(info, str) and BOX_START in info else question
    target = Target(box, find_image_index(where, len(images)))
    name = _id(row) if "id" in row else f"{task}_{index:05d}"
    yield Example(name, task, images, question, (target,), None, source)


def _read_mgrounding(row: dict[str, Any], index: int, source: str) -> Iterator[Example | Rejected]:
    """An example a turn. The second turn of row "x" is "x#2"."""
    images, name, task = _images(row), _id(row), tasks.task_of_mgrounding(row)
    if any(map(_CAPTIONING.search, (name, source, str(row.get("type"))))):
        raise DataError("gg_reg is captioning, not grounding")
    turns = _list(row, "conversations")
    if not all(isinstance(turn, dict) for turn in turns):
        raise DataError("a turn of the conversation is not an object")
    if [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise DataError("the conversation is not human and gpt in turn")
    asked = "".join(str(turn.get("value")) for turn in turns[::2])
    _question(asked, len(images))  # the images belong to the row, so the marks do as well

    for n, (human, gpt) in enumerate(zip(turns[::2], turns[1::2], strict=True), start=1):
        turn = name if n == 1 else f"{name}#{n}"
        try:
            question, answer = _text(human, "value"), _text(gpt, "value")
            targets = _targets(answer, question, len(images))
            yield Example(turn, task, images, question, targets, None, source)
        except DataError as error:
            yield Rejected(source, turn, str(error))


def _targets(answer: str, question: str, num_images: int) -> tuple[Target, ...]:
    objects, problems = find_objects(answer, num_images)
    if problems:  # part of an answer is not the answer
        raise DataError("; ".join(problems))
    if not objects:
        raise DataError("the answer holds no box")
    asked = find_image_index(question, num_images)
    return tuple(Target(o.box, o.image if o.image else asked, o.label) for o in objects)


def _plain_answer(example: Example) -> str:
    """The inverse of `_targets`."""
    parts = []
    said = find_image_index(example.question, len(example.images))
    for target in example.targets:
        if target.image not in (None, said):
            parts.append(f"It's {_in_image(target.image)}.")
            said = target.image
        parts.append(format_object(GroundedObject(target.box, label=target.label)))
    return " ".join(parts)


def _in_image(image: int) -> str:
    ordinal = ORDINALS[image - 1] if image <= len(ORDINALS) else f"{image}th"
    return f"in the {ordinal} image"


# Fields -------------------------------------------------------------------------------------------


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name!r} is {_kind(value)} where text is needed")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name!r} holds half a surrogate pair, which is no text") from None
    return value


def _id(row: dict[str, Any]) -> str:
    return str(row["id"]) if type(row.get("id")) is int else _text(row, "id")


def _list(row: dict[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise DataError(f"{name!r} is {_kind(value)} where a list is needed")
    if not value:
        raise DataError(f"{name!r} is empty")
    return value


def _images(row: dict[str, Any]) -> tuple[str, ...]:
    images = _list(row, "images")
    if not all(isinstance(image, str) and image for image in images):
        raise DataError("'images' holds something that is not a path")
    return tuple(images)


def _question(text: str, num_images: int) -> str:
    if (marks := text.count(IMAGE_MARK)) > num_images:
        raise DataError(f"the question has {marks} {IMAGE_MARK} marks for {num_images} images")
    return text


def _box(values: Any, top: int, whole: bool = False) -> tuple[Any, Any, Any, Any]:
    """Four numbers that make a box with an area inside 0..top."""
    kinds = (int,) if whole else (int, float)
    if not isinstance(values, list) or [type(value) in kinds for value in values] != [True] * 4:
        what = "integers" if whole else "numbers"
        raise DataError(f"the box {_quote(values)} is not a list of four {what}")
    x1, y1, x2, y2 = values
    if not all(0 <= value <= top for value in values):  # nor is NaN
        raise DataError(f"the box {_quote(values)} is not inside 0..{top}")
    if x1 >= x2 or y1 >= y2:
        raise DataError(f"the box {values} is inverted or empty: it needs x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "missing" if value is None else names.get(type(value), "a number")

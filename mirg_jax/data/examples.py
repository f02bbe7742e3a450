"""Questions about several images with their answers, and the three file formats that hold them.

- MGrounding-630k: rows `{id, images, conversations: [{from, value}], type}`, boxes on the grid
  inside the answers' text, several turns a row; `conversation_rows` has its other forms, and
  answers with thoughts are trajectories.
- MIG-Bench: rows `{task, images, question, answer, additional_info, need_format}`, one box a row in
  fractions.
- Trajectories: rows `{id, task, images, question, targets: [{image, box, label}], response}`, and
  perhaps `direct`, whether an answer without thoughts is asked for.

A file is a JSON list or JSON lines, and is recognised by its content. Rows count from 0. A row that
can't be used is rejected with a reason; it never stops the others.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mirg_jax.data import conversation_rows, mig_bench_rows, near_forms
from mirg_jax.data.conversation_answers import read_answer
from mirg_jax.data.conversation_rows import IMAGE_MARK
from mirg_jax.data.json_rows import (
    four_numbers,
    images_field,
    kind_of,
    list_field,
    on_grid,
    quote,
    refuse_fractions,
    text_field,
    whole_number,
    without_nulls,
)
from mirg_jax.data.named_images import check_captions, find_asked_image
from mirg_jax.data.packed_images import without_folder
from mirg_jax.data.row_files import read_rows
from mirg_jax.errors import DataError, shorten
from mirg_jax.files import places
from mirg_jax.grounding import tasks
from mirg_jax.grounding.boxes import GRID, Box, fraction_to_grid, grid_to_fraction, is_valid
from mirg_jax.grounding.grammar import (
    ORDINALS,
    GroundedObject,
    format_box,
    format_object,
)

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
      direct: whether an answer without thoughts is asked for; None where the file doesn't say.
      columns: the row as its file has it, where it was asked for; not part of what the example is.
    """

    id: str
    task: str
    images: tuple[str, ...]
    question: str
    targets: tuple[Target, ...]
    response: str | None = None
    source: str = field(default="", compare=False)
    direct: bool | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Rejected:
    """A row, or a turn of a row, that can't be used; long ids and reasons are shortened."""

    source: str
    id: str
    reason: str

    def __post_init__(self):
        object.__setattr__(self, "id", shorten(self.id, 200))
        object.__setattr__(self, "reason", shorten(self.reason, 500))


def read_examples(
    path: str | places.Place, *, columns: bool = False
) -> tuple[list[Example], list[Rejected]]:
    """Reads a file of any of the three formats, recognised by its content.

    Args:
      path: the file.
      columns: whether examples keep their row as the file has it.

    Raises:
      DataError: the file is missing, unreadable, cut, empty, or of no known format.
    """
    path = places.of(path)
    rows, read_row = _load(path)
    examples, rejected = [], []
    for index, row in enumerate(rows):
        source = f"{path.name} row {index}"
        try:
            if not isinstance(row, dict):
                raise DataError(f"the row is not an object but {kind_of(row)}")
            for item in read_row(row, index, source):
                if columns and isinstance(item, Example):
                    item = replace(item, columns=row)
                (examples if isinstance(item, Example) else rejected).append(item)
        except DataError as error:
            name = str(row.get("id", "")) if isinstance(row, dict) else ""
            rejected.append(Rejected(source, name, str(error)))
    return examples, rejected


def key_of(example: Example) -> str:
    """What tells an example from others: a hash of its images' paths, question and targets.

    Images in a table go by the table's name, wherever it lies.
    """
    targets = [[target.image, *target.box] for target in example.targets]
    told = json.dumps([[*map(without_folder, example.images)], example.question, targets])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def write_trajectories(path: str | pathlib.Path, examples: Iterable[Example]) -> None:
    """Writes the trajectory format; everything but `source` and `columns` is kept."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(map(to_line, examples))


def to_line(example: Example) -> str:
    """A line of the trajectory format."""
    row = asdict(example)
    del row["source"], row["columns"]
    if example.direct is None:
        del row["direct"]
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
        said = find_asked_image(example.question, len(example.images)).image
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


def _load(path: places.Place) -> tuple[list[Any], _ReadRow]:
    """The rows of a file and what reads them."""
    rows = read_rows(path)
    for row in rows:
        if isinstance(row, dict) and (read_row := _reader_of(row)):
            return rows, read_row
    fields = ""
    if isinstance(rows[0], dict):
        fields = f"; the fields of the first are {quote([*rows[0]])}"
    if problem := near_forms.missing(rows, lambda row: _reader_of(row) is not None):
        fields += f"; {problem}"
    raise DataError(
        f'{path}: no row has "conversations", "messages" or "query" and "response" '
        f'(MGrounding-630k and chats), "question" and "answer" (MIG-Bench) or "question" and '
        f'"targets" (trajectories){fields}'
    )


def _reader_of(row: dict[str, Any]) -> _ReadRow | None:
    """What reads rows with such fields; None if they are of no known format."""
    row = without_nulls(row)
    if any(row.get(name, []) != [] for name in conversation_rows.NAMES):
        return _read_conversation
    if {"question", "answer"} <= row.keys() and row.get("targets", []) == []:
        return _read_mig_bench
    if "question" in row and not row.keys().isdisjoint(("targets", "response")):
        return _read_trajectory
    return _read_conversation if conversation_rows.is_conversation(row) else None


def _write_json(path: str | pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)


# Rows ---------------------------------------------------------------------------------------------


def _read_trajectory(row: dict[str, Any], index: int, source: str) -> Iterator[Example]:
    yield read_trajectory(row, index, source)


def read_trajectory(row: dict[str, Any], index: int, source: str) -> Example:
    """Reads a row of our own form, with "question" and "targets".

    Args:
      row: the row.
      index: its number in the file, from 0.
      source: where it is, for error messages.

    Raises:
      DataError: if a field is missing or of another type.
    """
    images = images_field(row)
    question = _question(text_field(row, "question"), len(images))
    response = None if row.get("response") is None else text_field(row, "response")
    targets = []
    for target in list_field(row, "targets"):
        if not isinstance(target, dict):
            raise DataError(f"a target is not an object but {kind_of(target)}")
        image = target.get("image")
        number = whole_number(image)
        if image is not None and (number is None or not 1 <= number <= len(images)):
            raise DataError(f"a target's image is {quote(image)}, not one of 1..{len(images)}")
        label = "" if target.get("label") is None else text_field(target, "label")
        targets.append(Target(_grid_box(target.get("box")), number, label))
    task = tasks.UNKNOWN if row.get("task") is None else text_field(row, "task")
    name = f"{task}_{index:05d}" if row.get("id") is None else _id(row)
    direct = row.get("direct")
    if direct is not None and type(direct) is not bool:
        raise DataError(f"'direct' is {quote(direct)}, neither true nor false")
    return Example(name, task, images, question, tuple(targets), response, source, direct)


def _read_mig_bench(row: dict[str, Any], index: int, source: str) -> Iterator[Example]:
    fields = mig_bench_rows.read_fields(row)
    question = _question(fields.question, len(fields.images))
    box = fraction_to_grid(_inside(fields.answer, 1))
    if not is_valid(box):
        raise DataError(f"the box {[*fields.answer]} is too small for a grid of {GRID}")
    name = f"{fields.task}_{index:05d}" if row.get("id") is None else _id(row)
    target = Target(box, fields.target_image)
    _check_image(target, question, len(fields.images), fields.task)
    yield Example(name, fields.task, fields.images, question, (target,), None, source)


def _read_conversation(
    row: dict[str, Any], index: int, source: str
) -> Iterator[Example | Rejected]:
    """An example a turn. The second turn of row "x" is "x#2"."""
    row = without_nulls(row)
    conversation_rows.check_learned(row)
    images, turns = conversation_rows.read_fields(row)
    task = tasks.task_of_mgrounding(row | {"images": [*images]})
    name = _id(row) if "id" in row else f"{task}_{index:05d}"
    if any(map(_CAPTIONING.search, (name, source, str(row.get("type"))))):
        raise DataError("gg_reg is captioning, not grounding")
    for n, turn in enumerate(turns, start=1):
        turn_name = name if n == 1 else f"{name}#{n}"
        try:
            yield _read_turn(turn, turn_name, task, source)
        except DataError as error:
            yield Rejected(source, turn_name, str(error))


def _read_turn(turn: conversation_rows.Turn, name: str, task: str, source: str) -> Example:
    conversation_rows.check_learned(turn.answered.row)
    question, count = turn.question(), len(turn.images)
    if not count:
        raise DataError("no image stands before the question or in it")
    check_captions(question, count - sum(turn.keeps) + 1, count)
    answer = read_answer(turn.answered.text(), turn.answered.thoughts(), count)
    asked = find_asked_image(question, count).image
    targets = tuple(Target(each.box, each.image or asked, each.label) for each in answer.objects)
    for target in targets:
        _check_image(target, question, count, task)
    return Example(name, task, turn.images, question, targets, answer.response, source)


def _check_image(target: Target, question: str, num_images: int, task: str) -> None:
    """Raises DataError if it isn't known which of several images a box is in."""
    if target.image is not None or num_images == 1 or task in tasks.IN_ANY_IMAGE:
        return
    problem = find_asked_image(question, num_images).problem
    reason = f", as to the question, {problem}" if problem else ""
    raise DataError(
        f"which of the {num_images} images a box is in is not said{reason}; name it before the "
        'box, as "In the second image: ", or at the question\'s end, as "locate it in the second '
        'image" (a caption of an image names none)'
    )


def _plain_answer(example: Example) -> str:
    """An answer from which `_read_turn` reads the example's targets."""
    parts = []
    said = find_asked_image(example.question, len(example.images)).image
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


def _id(row: dict[str, Any]) -> str:
    number = whole_number(row.get("id"))
    return text_field(row, "id") if number is None else str(number)


def _question(text: str, num_images: int) -> str:
    if (marks := text.count(IMAGE_MARK)) > num_images:
        raise DataError(f"the question has {marks} {IMAGE_MARK} marks for {num_images} images")
    if not text.replace(IMAGE_MARK, "").strip():
        raise DataError("the question is empty")
    return text


def _grid_box(values: Any) -> Box:
    """A box of four integers. Raises DataError if it isn't one, or not on the grid."""
    box = four_numbers(values, "the box")
    refuse_fractions(box, f"the box {quote(values)}")
    x1, y1, x2, y2 = _inside(box, GRID)
    if any(whole_number(value) is None for value in (x1, y1, x2, y2)):
        raise DataError(f"the box {quote(values)} is not a list of four integers")
    return x1, y1, x2, y2


def _inside(box: tuple[Any, Any, Any, Any], top: int) -> tuple[Any, Any, Any, Any]:
    """The box itself, without rounding over the edge.

    Raises DataError if it has no area or isn't inside 0..top.
    """
    x1, y1, x2, y2 = values = [on_grid(value, top) for value in box]
    if not all(0 <= value <= top for value in values):  # nor is NaN
        raise DataError(f"the box {quote([*box])} is not inside 0..{top}")
    if x1 >= x2 or y1 >= y2:
        raise DataError(f"the box {[*box]} is inverted or empty: it needs x1 < x2 and y1 < y2")
    return x1, y1, x2, y2

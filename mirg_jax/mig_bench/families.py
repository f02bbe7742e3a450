"""Families of models: how each is asked MIG-Bench's questions, and what its answers mean.

A family determines the words beside each image, how boxes in the question are written, the request
for an answer format (all used by `prompts.py`), and the unit of the coordinates in answers.

Under the protocol `authors` everything is as in the published evaluation (Migician's `eval/`),
including its mistakes, and `parsing.parse_authors` reads the response unchanged. Under `answer` the
mistakes are corrected, and every box of a response is converted to the format and grid of
`grounding/grammar.py` before scoring.

A checkpoint that we run ourselves (`evaluation/evaluate.py`) always gets our own prompt; there the
family only determines the coordinates of boxes in questions and answers.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mirg_jax.data.images import Root, image_size, smart_resize
from mirg_jax.data.json_rows import quote
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.grounding import boxes, grammar
from mirg_jax.grounding.image_words import OTHER, UNCLEAR
from mirg_jax.grounding.tasks import IN_ANY_IMAGE
from mirg_jax.mig_bench import box_images, scoring
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.parsing import parse_answer

# Qwen2-VL's own limits of an image.
MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056
_MOST_FRACTION = 1.05


@dataclasses.dataclass(frozen=True)
class Form:
    """The request for an answer format, appended to the question.

    Attributes:
      authors: as the benchmark's authors write it.
      answer: the same without their mistakes.
    """

    authors: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that get the same prompt and answer in the same coordinates.

    Attributes:
      title: the family's name in tables.
      model: name of an example on the Hugging Face hub.
      form: the request for an answer format, after the question.
      before: text before each image; `{n}` is its number from 1.
      after: text after each image.
      question_box: how a box in the question is written. kept: as in the file, on the grid between
        Qwen2-VL's tokens. list: `[x1,y1,x2,y2]` on the grid. fractions: a list in fractions of the
        image. pixels: a list in pixels of the image as the model gets it. thousandths: the same
        list on the grid. removed: not at all,
        since the box is drawn in the image.
      numbers: unit of the coordinates in an answer. grammar: our own format, read as it is. grid:
        0..1000, or fractions where no number is over 1. pixels: of the image as the model gets it.
      scale_y: whether to apply the authors' correction for their own model.
      authors_side: longest side that the authors shrink an image to; 0: they don't.
      max_tokens: maximum length of an answer in tokens.
      extra_body: additional fields of a request. Boxes of Qwen's models consist of special tokens,
        which vLLM leaves out by default.
    """

    title: str
    model: str
    form: Form
    before: str = ""
    after: str = ""
    question_box: Literal["kept", "list", "fractions", "pixels", "thousandths", "removed"] = "kept"
    numbers: Literal["grammar", "grid", "pixels"] = "grid"
    scale_y: bool = False
    authors_side: int = 0
    max_tokens: int = 256
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_QWEN_FORM = Form(
    # The last token and the spelling are mistakes of the authors.
    "Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. Don't generate addtional words.",
    "Format: <|box_start|>(x1,y1),(x2,y2)<|box_end|>. Don't generate additional words.",
)
_JSON_FORM = Form(
    _QWEN_FORM.authors,  # the authors had none of these models
    'Output its bbox coordinates in JSON format: [{"bbox_2d": [x1, y1, x2, y2], "label": "name"}].',
)
_LIST_FORM = Form(
    " Format:<box>[x1, y1, x2, y2]</box>. Don't generate addtional words.",
    "Format: <box>[x1, y1, x2, y2]</box>. Don't generate additional words.",
)
_UNIVG = "First output the thinking process in <think> </think> tags and then output the bounding "
_UNIVG += "box in <answer> </answer> tags."
_KEEP_TOKENS = {"skip_special_tokens": False}

FAMILIES: dict[str, Family] = {
    "mirg": Family(
        "MIRG-RL",
        "a checkpoint that scripts/convert_checkpoint.py exported",
        Form("", ""),
        before="Image-{n}: ",
        numbers="grammar",
        max_tokens=1024,
        extra_body=_KEEP_TOKENS,
    ),
    "qwen2_vl": Family(
        "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct", _QWEN_FORM, extra_body=_KEEP_TOKENS
    ),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        _JSON_FORM,
        question_box="pixels",
        numbers="pixels",
        extra_body=_KEEP_TOKENS,
    ),
    "qwen3_vl": Family(
        "Qwen3-VL",
        "Qwen/Qwen3-VL-8B-Instruct",
        _JSON_FORM,
        question_box="thousandths",
        extra_body=_KEEP_TOKENS,
    ),
    "migician": Family(
        "Migician",
        "Michael4933/Migician",
        _QWEN_FORM,
        scale_y=True,
        extra_body=_KEEP_TOKENS,
    ),
    "univg_r1": Family(
        "UniVG-R1",
        "GD-ML/UniVG-R1",
        Form(f" {_UNIVG}", _UNIVG),  # as its own evaluation has it
        max_tokens=1024,
        extra_body=_KEEP_TOKENS,
    ),
    "internvl2": Family(
        "InternVL2",
        "OpenGVLab/InternVL2-8B",
        Form(
            "Format:<box>[[x1,y1,x2,y2]]</box>. Don't generate addtional words.",
            "Format: <box>[[x1,y1,x2,y2]]</box>. Don't generate additional words.",
        ),
        before="Image-{n}: ",
        after="\n",
        question_box="list",
        max_tokens=1024,
    ),
    "minicpm_v": Family(
        "MiniCPM-V 2.6",
        "openbmb/MiniCPM-V-2_6",
        Form(
            "Format:<box>x1 y1 x2 y2</box>. Don't generate addtional words.",
            "Format: <box>x1 y1 x2 y2</box>. Don't generate additional words.",
        ),
        question_box="list",
        authors_side=500,
    ),
    "mantis": Family(
        "Mantis",
        "TIGER-Lab/Mantis-8B-siglip-llama3",
        _LIST_FORM,
        question_box="fractions",
        max_tokens=1024,
    ),
    "llava_onevision": Family(
        "LLaVA-OneVision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        _LIST_FORM,
        before="image{n}:",
        after="\n",
        question_box="removed",
    ),
    "mplug_owl3": Family(
        "mPLUG-Owl3",
        "mPLUG/mPLUG-Owl3-7B-240728",
        _LIST_FORM,
        before="Image-{n}:",
        after="\n",
        question_box="removed",
    ),
}

# The family for each value of `config.evaluation.coordinates`.
OF_COORDINATES = {"grid": "mirg", "pixels": "qwen2_5_vl", "thousandths": "qwen3_vl"}

Size = tuple[int, int]  # width, height
SizeOf = Callable[[str], Size]  # the size of an image, by its path, as the model gets it


def of_coordinates(coordinates: str) -> Family:
    """Returns the family whose boxes have the coordinates of `config.evaluation.coordinates`.

    Args:
      coordinates: "grid" for models trained here, which use the data's grid whatever model they
        started from; "pixels" for the published Qwen2.5-VL models, which use pixels of the image
        as they get it; "thousandths" for the published Qwen3-VL models, which use the grid in lists
        of their own.
    """
    return FAMILIES[OF_COORDINATES[coordinates]]


# Images -------------------------------------------------------------------------------------------


def size_given(size: Size, max_pixels: int, min_pixels: int = MIN_PIXELS) -> Size:
    """Returns the width and height to which Qwen's processor resizes an image."""
    width, height = size
    height, width = smart_resize(height, width, min_pixels, max_pixels)
    return width, height


def sizes_given(image_root: Root, max_pixels: int, min_pixels: int = MIN_PIXELS) -> SizeOf:
    """Returns a function from an image's path to its width and height as Qwen's models get it.

    Each call of that function reads the header of the image's file, and raises DataError if the
    image can't be read.

    Args:
      image_root: folder that image paths are relative to.
      max_pixels: upper limit on the pixels after resizing.
      min_pixels: lower limit on the pixels after resizing.
    """

    def size_of(path: str) -> Size:
        return size_given(image_size(image_root, path), max_pixels, min_pixels)

    return size_of


# Reading ------------------------------------------------------------------------------------------


def to_grammar(
    family: Family, response: str | None, row: Row, size_of: SizeOf | None = None
) -> str | None:
    """Converts every box of a response to the format of our grammar; None stays None.

    Pixels are those of the image that the response names for the box (see `box_images`), or of the
    row's target image if it names none. If that image isn't there, or it isn't clear which it is
    and the row's images are of several sizes, the box is made one that the grammar doesn't read.
    Numbers beyond the image's edge are set to the edge.

    Args:
      family: the family of the model.
      response: the model's response.
      row: the row that it answers.
      size_of: function from an image's path to its size; required if the family answers in pixels.

    Raises:
      DataError: if `size_of` does.
    """
    return None if response is None else _convert(family, response, row, size_of)[0]


def _convert(
    family: Family, response: str, row: Row, size_of: SizeOf | None
) -> tuple[str, str | None]:
    """Converts a response as `to_grammar`; returns also why its first box isn't read, if so."""
    if family.numbers == "grammar":
        return response, None
    pieces, end = [], 0
    numbers: collections.Counter[int] = collections.Counter()
    problem = None
    for found in box_images.find_boxes(response, row.images):
        image = found.image
        if len(row.images) == 1:
            image = 1
        elif image is None:
            image = row.target_image or _default_image(row)
        values, size = list(found.corners), None
        if _are_fractions(values):
            size = (1, 1)
        elif family.numbers == "pixels" and image != OTHER:
            assert size_of is not None
            size = _size(image, row, size_of)
        is_read = found.is_clear and (size is not None or family.numbers != "pixels")
        if not is_read and problem is None:
            said = quote(response[max(0, found.start - 60) : found.end + 30])
            what = "isn't there" if image == OTHER else "isn't clear"
            problem = f"a box is in pixels of an image that {what}: {said}"
            if not found.is_clear:
                problem = f"the order of a box's numbers is said in two ways: {said}"
        elif size is not None:
            scaled = zip(values, size * 2, strict=True)
            values = [min(max(boxes.GRID * v / side, 0), boxes.GRID) for v, side in scaled]
        x1, y1, x2, y2 = map(round, values)
        corners = f"({x1},{y1}),({x2},{y2})" if is_read else f"[{x1}, {y1}, {x2}, {y2}]"
        identity = ""
        if found.in_field:  # where the grammar doesn't look for it
            named = max(image, OTHER)
            numbers[named] += 1
            identity = grammar.format_id(named, numbers[named])
        box = f"{identity}{grammar.BOX_START}{corners}{grammar.BOX_END}"
        pieces += [response[end : found.start], box]
        end = found.end
    return "".join([*pieces, response[end:]]), problem


def _size(image: int, row: Row, size_of: SizeOf) -> Size | None:
    """Returns the size of an image of a row; of one that isn't clear if all have the same."""
    sizes = {
        size_of(path) for path in (row.images if image == UNCLEAR else [row.images[image - 1]])
    }
    return sizes.pop() if len(sizes) == 1 else None


def _default_image(row: Row) -> int:
    """Returns the image of a box for which neither a row nor its answer names one.

    In some tasks the box is the same in all images, so that it is taken as of the last.
    """
    return len(row.images) if row.task in IN_ANY_IMAGE else UNCLEAR


def _are_fractions(values: Sequence[float]) -> bool:
    """Returns whether numbers are fractions of the image, over its edge by rounding at most."""
    in_parts = any(value % 1 for value in values)
    return max(values) <= (_MOST_FRACTION if in_parts else 1)


class ReadResponses(NamedTuple):
    """Responses in the format of our grammar.

    Attributes:
      responses: one for each row; None if there is none or its image can't be read.
      unreadable: by row index, why a response, or the box that counts, can't be read.
    """

    responses: list[str | None]
    unreadable: dict[int, str]


def read_responses(
    family: Family,
    rows: Sequence[Row],
    responses: Sequence[str | None],
    size_of: SizeOf | None = None,
) -> ReadResponses:
    """Converts responses as `to_grammar` does; one whose image can't be read becomes None.

    Args:
      family: the family of the model.
      rows: the rows.
      responses: the responses to these rows, in the same order.
      size_of: as in `to_grammar`.

    Raises:
      DataError: if no response at all can be read because of its image.
    """
    read, unreadable = [], {}
    for row, response in zip(rows, responses, strict=True):
        try:
            text, problem = response, None
            if response is not None:
                text, problem = _convert(family, response, row, size_of)
            read.append(text)
            if text and problem and parse_answer(text, len(row.images)).box is None:
                unreadable[row.index] = problem
        except DataError as error:
            read.append(None)
            unreadable[row.index] = str(error)
    if unreadable and all(response is None for response in read):
        raise DataError(f"no response can be scored; the first: {next(iter(unreadable.values()))}")
    return ReadResponses(read, unreadable)


def score(
    family: Family,
    rows: Sequence[Row],
    responses: Sequence[str | None],
    protocol: scoring.Protocol = "answer",
    *,
    image_root: Root = "",
    max_pixels: int = MAX_PIXELS,
    min_pixels: int = MIN_PIXELS,
    skip_impossible: bool = False,
    strict: bool = False,
) -> scoring.Scores:
    """Scores the unconverted responses of a family's model.

    Args:
      family: the family of the model.
      rows: as in `scoring.score`.
      responses: as in `scoring.score`.
      protocol: as in `scoring.score`.
      image_root: folder that image paths are relative to; required if the family answers in pixels.
      max_pixels: upper limit on the pixels of an image as the model got it.
      min_pixels: lower limit.
      skip_impossible: as in `scoring.score`.
      strict: as in `scoring.score`.

    Raises:
      ConfigError: if the image root is required and missing.
      DataError: if no image can be read, or no row is left to score.
    """
    unreadable: dict[int, str] = {}
    if protocol == "answer":
        if family.numbers == "pixels" and not image_root:
            raise ConfigError(
                f"{family.title} answers in pixels: give --image_root, so that images' sizes can "
                "be looked up"
            )
        size_of = sizes_given(image_root, max_pixels, min_pixels)
        responses, unreadable = read_responses(family, rows, responses, size_of)
    return scoring.score(
        rows,
        responses,
        protocol,
        skip_impossible=skip_impossible,
        scale_y=family.scale_y,
        strict=strict,
        unreadable=unreadable,
    )

"""Families of models: how each is asked MIG-Bench's questions, and what its answers mean.

A question goes with its images. Which words go with the images, how the question's own boxes are
written and what is said of the answer's form is the family's (`prompts.py` does it), and so is what
the numbers of its answers mean.

Under the protocol `authors` all is as in the published evaluation (Migician's `eval/`), slips
included, and the response is read by `parsing.parse_authors` as it is. Under `answer` the slips are
mended, and every box of the response is brought into the form and onto the grid of
`grounding/grammar.py` before it is scored.

A checkpoint that we run ourselves (`evaluation/evaluate.py`) gets our own prompt whatever its
family; the family says there how the question's boxes are written and what the answer's mean.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mirg_jax.data.images import Root, image_size, smart_resize
from mirg_jax.errors import ConfigError
from mirg_jax.grounding import boxes, grammar
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import Row

# Qwen2-VL's own limits of an image.
MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056


@dataclasses.dataclass(frozen=True)
class Form:
    """What is said of the answer's form: by the authors, and without their slips."""

    authors: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that are asked and answer in one way.

    Attributes:
      title: as in tables.
      model: one of them, as Hugging Face's hub names it.
      form: put behind the question.
      before, after: each image; `{n}` counts from 1.
      question_box: how a box of the question is written. kept: as in the file, on the grid between
        Qwen2-VL's tokens. list: `[x1,y1,x2,y2]` on the grid. fractions: the same in fractions of
        the image. pixels: the same in pixels of the image as the model gets it. removed: not at
        all, since it is drawn in the image.
      numbers: what those of an answer mean. grammar: our own form, read as it is. grid: 0..1000,
        or fractions where none is over 1. pixels: of the image as the model gets it.
      scale_y: the authors' correction for their own model.
      authors_side: longest side that the authors make an image smaller to; 0 for any.
      max_tokens: of an answer.
      extra_body: of a request. Boxes are special tokens of Qwen's, which vLLM would leave out.
    """

    title: str
    model: str
    form: Form
    before: str = ""
    after: str = ""
    question_box: Literal["kept", "list", "fractions", "pixels", "removed"] = "kept"
    numbers: Literal["grammar", "grid", "pixels"] = "grid"
    scale_y: bool = False
    authors_side: int = 0
    max_tokens: int = 256
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_QWEN_FORM = Form(
    # The last token is the authors' slip, and so is the spelling.
    "Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. Don't generate addtional words.",
    "Format: <|box_start|>(x1,y1),(x2,y2)<|box_end|>. Don't generate additional words.",
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
        Form(
            _QWEN_FORM.authors,  # the authors had none of these models
            'Output its bbox coordinates in JSON format: [{"bbox_2d": [x1, y1, x2, y2], '
            '"label": "name"}].',
        ),
        question_box="pixels",
        numbers="pixels",
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

# The family that a setting `evaluation.coordinates` means.
_OF_COORDINATES = {"grid": "mirg", "pixels": "qwen2_5_vl"}

Size = tuple[int, int]  # width, height
SizeOf = Callable[[str], Size]  # the size of an image, by its path, as the model gets it


def of_coordinates(coordinates: str) -> Family:
    """The family whose boxes are what `config.evaluation.coordinates` says.

    Args:
      coordinates: "grid": ours, trained on the grid of the data, whichever model they started
        from. "pixels": published Qwen2.5-VL, taught pixels of the image as it gets it.

    Raises:
      ConfigError: it is something else.
    """
    if coordinates not in _OF_COORDINATES:
        known = ", ".join(_OF_COORDINATES)
        raise ConfigError(f"evaluation.coordinates={coordinates!r} is none of {known}")
    return FAMILIES[_OF_COORDINATES[coordinates]]


# Images -------------------------------------------------------------------------------------------


def size_given(size: Size, max_pixels: int, min_pixels: int = MIN_PIXELS) -> Size:
    """Width and height of an image of some size as a model of Qwen's gets it."""
    height, width = smart_resize(size[1], size[0], min_pixels, max_pixels)
    return width, height


def sizes_given(image_root: Root, max_pixels: int, min_pixels: int = MIN_PIXELS) -> SizeOf:
    """A function from an image's path to its width and height as a model of Qwen's gets it.

    Each call reads the head of the image's file.

    Raises (when called):
      DataError: the image can't be read.
    """

    def size_of(path: str) -> Size:
        return size_given(image_size(image_root, path), max_pixels, min_pixels)

    return size_of


# Reading ------------------------------------------------------------------------------------------

# No more digits than a coordinate has, and white space only behind something: linear in the text.
_N = r"(\d{1,5}(?:\.\d{1,20})?)"
_FOUR = rf"\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*"
_BOX = re.compile(
    rf"<box>\s*{_N}\s+{_N}\s+{_N}\s+{_N}\s*</box>"
    r"|(?:(?:<\|box_start\|>|<box>)\s*)?"
    rf"(?:\(\s*{_N}\s*,\s*{_N}\s*\)\s*,\s*\(\s*{_N}\s*,\s*{_N}\s*\)"
    rf"|\[\[{_FOUR}\]\]|\[{_FOUR}\]|\({_FOUR}\))"
    # Some end as they began, as the authors' prompt has it.
    r"(?:\s*(?:<\|box_end\|>|<\|box_start\|>|</box>))?",
    re.ASCII,
)


def to_grammar(
    family: Family, response: str | None, row: Row, size_of: SizeOf | None = None
) -> str | None:
    """A response with every box of it as our grammar has boxes; None stays None.

    Pixels are those of the image that the words before a box name, or else of the row's target
    image. Numbers past the image's edge are set to it.

    Args:
      size_of: needed where the family's numbers are pixels.

    Raises:
      DataError: of `size_of`.
    """
    if response is None or family.numbers == "grammar":
        return response
    image = row.target_image or len(row.images)
    pieces, end = [], 0
    for match in _BOX.finditer(response):
        before = response[end : match.start()]
        image = grammar.find_image_index(before, len(row.images)) or image
        values = [float(digits) for digits in match.groups() if digits]
        if max(values) <= 1:
            values = [boxes.GRID * value for value in values]
        elif family.numbers == "pixels":
            width, height = size_of(row.images[image - 1])
            scaled = zip(values, (width, height, width, height), strict=True)
            values = [min(boxes.GRID * value / side, boxes.GRID) for value, side in scaled]
        x1, y1, x2, y2 = map(round, values)
        pieces += [before, f"{grammar.BOX_START}({x1},{y1}),({x2},{y2}){grammar.BOX_END}"]
        end = match.end()
    return "".join([*pieces, response[end:]])


def score(
    family: Family,
    rows: Sequence[Row],
    responses: Sequence[str | None],
    protocol: scoring.Protocol = "answer",
    *,
    image_root: Root = "",
    max_pixels: int = MAX_PIXELS,
    skip_impossible: bool = False,
    strict: bool = False,
) -> scoring.Scores:
    """Scores responses as the models of a family gave them.

    Args:
      rows: as `scoring.score` takes them.
      responses: the same.
      protocol: the same.
      skip_impossible: the same.
      strict: the same.
      image_root: folder of the rows' images, whose sizes count where the family's numbers are
        pixels.
      max_pixels: of an image as the model got it.

    Raises:
      ConfigError: the family needs an image root.
      DataError: an image can't be read, or every row was left out.
    """
    if protocol == "answer":
        if family.numbers == "pixels" and not image_root:
            raise ConfigError(
                f"{family.title} answers in pixels: give --image_root, so that images' sizes can "
                "be looked up"
            )
        size_of = sizes_given(image_root, max_pixels)
        responses = [
            to_grammar(family, response, row, size_of)
            for row, response in zip(rows, responses, strict=True)
        ]
    return scoring.score(
        rows,
        responses,
        protocol,
        skip_impossible=skip_impossible,
        scale_y=family.scale_y,
        strict=strict,
    )

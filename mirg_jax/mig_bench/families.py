"""How families of models are asked MIG-Bench's questions, and how their answers are read.

A question goes with its images. Which words go with the images, how the question's own boxes are
written and what is said of the answer's form is the family's, and so is what its numbers mean.

Under the protocol `authors` all is as in the published evaluation (Migician's `eval/`), slips
included, and the response is read by `scoring.parse_authors` as it is. Under `answer` the slips are
mended, and every box of the response is brought into the form and onto the grid of
`grounding/grammar.py` before it is scored.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from mirg_jax.data.examples import IMAGE_MARK
from mirg_jax.data.images import image_size, shrink, smart_resize
from mirg_jax.errors import ConfigError
from mirg_jax.grounding import boxes, grammar
from mirg_jax.mig_bench import scoring

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
        the image. pixels: the same in pixels. removed: not at all, since it is drawn in the image.
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

Size = tuple[int, int]  # width, height
Part = tuple[Literal["text", "image"], str]


# Asking -------------------------------------------------------------------------------------------


def prompt(
    family: Family, row: scoring.Row, protocol: scoring.Protocol, sizes: Sequence[Size] = ()
) -> list[Part]:
    """A row's question as a message: texts, and images by their path, in order.

    Args:
      sizes: of the images as the model gets them, where the family's numbers are pixels.
    """
    question = row["question"].replace(IMAGE_MARK, "")
    if protocol == "authors":
        question = rewrite(question + family.form.authors, family, authors=True)
    else:
        question = rewrite(question, family, authors=False, sizes=sizes)
        question = f"{question.strip()} {family.form.answer}".strip()
    parts: list[Part] = []
    text = ""
    for n, path in enumerate(row["images"], start=1):
        text += family.before.format(n=n)
        parts += [("text", text)] * bool(text) + [("image", path)]
        text = family.after
    return [*parts, ("text", text + question)]


_QUESTION_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")
_TAGGED_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
_TAGS = {
    grammar.BOX_START: "<box>",
    grammar.BOX_END: "</box>",
    grammar.OBJECT_START: "<ref>",
    grammar.OBJECT_END: "</ref>",
}


def rewrite(question: str, family: Family, *, authors: bool, sizes: Sequence[Size] = ()) -> str:
    """A question with its boxes and tags as the family has them; `authors`: slips included."""
    how = family.question_box
    if how == "kept" or (how == "pixels" and authors):
        return question
    if how == "pixels":

        def pixels(match: re.Match) -> str:
            image = grammar.find_image_index(question[: match.start()], len(sizes)) or 1
            corners = boxes.grid_to_pixels([int(n) for n in match.groups()], *sizes[image - 1])
            return "[{}, {}, {}, {}]".format(*map(round, corners))

        return _TAGGED_BOX.sub(pixels, question)
    if how == "removed":  # with the brackets that it stands in
        question = re.sub(rf"\({_TAGGED_BOX.pattern}\)", "", question)
    for tag, other in _TAGS.items():
        question = question.replace(tag, other)
    if how == "list":
        return _QUESTION_BOX.sub(r"[\1,\2,\3,\4]", question)
    if how == "fractions":

        def fractions(match: re.Match) -> str:
            # The authors put "0." before the digits, which makes 0.58 of 58.
            said = [f"0.{n}" if authors else f"{int(n) / boxes.GRID:g}" for n in match.groups()]
            return f"[{','.join(said)}]"

        return _QUESTION_BOX.sub(fractions, question)
    return question


def size_given(size: Size, max_pixels: int) -> Size:
    """Width and height of an image as a model gets it whose numbers are pixels."""
    height, width = smart_resize(size[1], size[0], MIN_PIXELS, max_pixels)
    return width, height


def picture(
    family: Family, image: Image.Image, protocol: scoring.Protocol, max_pixels: int
) -> Image.Image:
    """An image as it is sent.

    One whose pixels are counted gets the size that the model's own processor would give it, which
    then leaves it as it is.
    """
    size = image.size
    if family.numbers == "pixels":
        size = size_given(size, max_pixels)
    elif protocol == "authors" and max(size) > family.authors_side > 0:
        side, longest = family.authors_side, max(size)
        size = tuple(max(1, int(side * length / longest)) for length in size)
    if size != image.size:
        return image.resize(size, Image.Resampling.BICUBIC)
    return shrink(image, max_pixels)


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


def read(
    family: Family, response: str, row: scoring.Row, size_of: Callable[[str], Size] | None = None
) -> str:
    """A response with every box of it as our grammar has boxes.

    Pixels are those of the image that the words before a box name, or else of the row's.

    Args:
      size_of: the size, as the model got it, of an image by its path; where the family's numbers
        are pixels.

    Raises:
      DataError: of `size_of`.
    """
    if family.numbers == "grammar":
        return response
    images = row["images"]
    image = scoring.target_image(row) or len(images)
    pieces, end = [], 0
    for match in _BOX.finditer(response):
        before = response[end : match.start()]
        image = grammar.find_image_index(before, len(images)) or image
        values = [float(digits) for digits in match.groups() if digits]
        if max(values) <= 1:
            values = [boxes.GRID * value for value in values]
        elif family.numbers == "pixels":
            width, height = size_of(images[image - 1])
            scaled = zip(values, (width, height, width, height), strict=True)
            # What is a little past the edge is meant to be at it.
            values = [min(boxes.GRID * value / side, boxes.GRID) for value, side in scaled]
        x1, y1, x2, y2 = map(round, values)
        pieces += [before, f"{grammar.BOX_START}({x1},{y1}),({x2},{y2}){grammar.BOX_END}"]
        end = match.end()
    return "".join([*pieces, response[end:]])


def score(
    family: Family,
    rows: Sequence[scoring.Row],
    responses: Sequence[str | None],
    protocol: scoring.Protocol = "answer",
    *,
    image_root: str = "",
    max_pixels: int = MAX_PIXELS,
    **how: bool,
) -> scoring.Scores:
    """Scores responses as the models of a family gave them.

    Args:
      rows: as `scoring.score` takes them.
      responses: the same.
      protocol: the same.
      image_root: folder of the rows' images, whose sizes count where the family's numbers are
        pixels.
      max_pixels: of an image as the model got it.
      how: the rest of what `scoring.score` takes.

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

        def size_of(path: str) -> Size:
            return size_given(image_size(image_root, path), max_pixels)

        responses = [
            None if response is None else read(family, response, row, size_of)
            for row, response in zip(rows, responses, strict=True)
        ]
    return scoring.score(rows, responses, protocol, scale_y=family.scale_y, **how)

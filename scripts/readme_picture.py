"""The README's picture: a question about several images and a trained model's grounded answer.

    python scripts/readme_picture.py --run=runs/demo

Draws a held-out question that `make demo` evaluated: its images with the boxes of the thoughts and
of the answer, and below them the question and the response. Without --row it is the row with the
highest IoU among group grounding and reasoning rows that are hits, with boxes in the most images.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mirg_jax import cli
from mirg_jax.data.images import load_image
from mirg_jax.errors import ConfigError
from mirg_jax.grounding import grammar
from mirg_jax.grounding.boxes import fraction_to_grid
from mirg_jax.inference import pictures
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import Row, load_benchmark
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.report import spans

_RUN = flags.DEFINE_string("run", "runs/demo", "The folder of the demo.")
_STAGE = flags.DEFINE_string("stage", "grpo", "Whose answer: a folder of RUN/eval.")
_ROW = flags.DEFINE_integer("row", None, "Which row of the held-out questions.")
_OUTPUT = flags.DEFINE_string("output", "docs/images/grounded_answer.png", "The PNG to write.")

_TASKS = ("group_grounding", "reasoning")
_WIDTH, _MARGIN, _GAP, _LABELS = 1200, 32, 24, 150  # pixels
_TEXT, _SMALL, _LINE = 25, 19, 42  # sizes of letters, and from one line to the next
_TAGS = re.compile(r"</?(?:think|answer)>|<\|(?:im_end|endoftext)\|>")
_INK, _DIM = "#222222", "#5d6066"
_ANSWER = "#e02020"
_OBJECTS = ("#2d7ff0", "#f08a00", "#a64dff", "#00a6b8", "#e83fb8", "#9a7410")


class Unit(NamedTuple):
    """What stays together on a line: a word, or an object's id, name and box on one plate.

    Attributes:
      parts: text and whether it is small.
      colour: of the plate; None: there is none.
      spaced: whether there is a space before it.
    """

    parts: list[tuple[str, bool]]
    colour: str | None
    spaced: bool


def choose(rows: Sequence[Row], responses: Sequence[str | None], scores: scoring.Scores) -> int:
    """The row to show."""

    def images_with_boxes(index: int) -> int:
        found = spans.read(responses[index], len(rows[index].images))
        return len({place.image for place in found.places})

    hits = [
        score
        for score in scores.rows
        if score.hit and score.format_ok and score.image == score.target_image
    ]
    hits = [s for s in hits if s.task in _TASKS and len(rows[s.index].images) >= 3]
    if not hits:
        raise ConfigError(f"no hit among the rows of {' and '.join(_TASKS)}; give --row")
    return max(hits, key=lambda s: (images_with_boxes(s.index), s.iou, -s.index)).index


# Images -------------------------------------------------------------------------------------------


def draw_images(
    root: pathlib.Path, names: Sequence[str], drawings: Sequence[Sequence[pictures.Drawing]]
) -> Image.Image:
    """The images side by side under their numbers, each with its boxes."""
    side = (_WIDTH - 2 * _MARGIN - (len(names) - 1) * _GAP) // len(names)
    boxed = []
    for name, marks in zip(names, drawings, strict=True):
        image = load_image(root, name)
        factor = side // max(image.size)
        if factor >= 1:  # whole pixels stay whole
            image = image.resize(
                (factor * image.width, factor * image.height), Image.Resampling.NEAREST
            )
        else:
            image.thumbnail((side, side))
        boxed.append(pictures.draw_boxes(image, marks, scale=0.9))
    top = 2 * _SMALL
    sheet = Image.new("RGB", (_WIDTH, top + max(image.height for image in boxed)), "white")
    draw = ImageDraw.Draw(sheet)
    free = _WIDTH - 2 * _MARGIN - sum(image.width for image in boxed)
    left = _MARGIN
    for number, image in enumerate(boxed, start=1):
        draw.text((left, 0), f"Image {number}", fill=_DIM, font=_font(small=True))
        sheet.paste(image, (left, top))
        left += image.width + free // max(1, len(boxed) - 1)
    return sheet


# Text ---------------------------------------------------------------------------------------------


def _font(small: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_SMALL if small else _TEXT)


def units(pieces: Sequence[str | spans.Piece], colours: Sequence[str]) -> list[Unit]:
    """Words and objects in order, without special tokens."""
    made: list[Unit] = []
    before: int | None = None  # the object of the piece before, -1 for none
    for piece in pieces:
        if isinstance(piece, str):
            for number, word in enumerate(piece.split()):
                made.append(Unit([(word, False)], None, number > 0 or piece[0].isspace()))
            before = None if piece.strip() else before
            continue
        kind, content, number = piece
        part = (" ".join(content.split()), kind == "box")
        if number == before:
            made[-1].parts.append(part)
        else:
            made.append(Unit([part], colours[number] if number >= 0 else _DIM, True))
        before = number
    return made


def sections(pieces: Sequence[str | spans.Piece]) -> tuple[list, list]:
    """The pieces of a response's thoughts and of its answer, without the tags around them."""
    thoughts, answer = [], []
    into = thoughts
    for piece in pieces:
        if not isinstance(piece, str):
            into.append(piece)
            continue
        before, tag, after = piece.partition(grammar.ANSWER_START)
        into.append(_TAGS.sub("", before))
        if tag:
            into = answer
            into.append(_TAGS.sub("", after))
    return thoughts, answer


def draw_text(paragraphs: Sequence[tuple[str, Sequence[Unit]]]) -> Image.Image:
    """Paragraphs, each with its label on the left, in lines as wide as the sheet allows."""
    left, right, pad = _MARGIN + _LABELS, _WIDTH - _MARGIN, 7
    space = _font().getlength(" ")
    placed, labels, y = [], [], 0.0
    for label, paragraph in paragraphs:
        labels.append((y, label))
        x = left
        for unit in paragraph:
            width = sum(_font(small).getlength(text) + space for text, small in unit.parts) - space
            width += 2 * pad if unit.colour else 0
            x += space if unit.spaced and x > left else 0
            if x > left and x + width > right:
                x, y = left, y + _LINE
            placed.append((x, y, width, unit))
            x += width
        y += 1.35 * _LINE
    sheet = Image.new("RGB", (_WIDTH, round(y)), "white")
    draw = ImageDraw.Draw(sheet)
    base = 0.62 * _LINE  # of the letters, below the line's top
    for y, label in labels:
        draw.text((_MARGIN, y + base), label, fill=_DIM, font=_font(), anchor="ls")
    for x, y, width, unit in placed:
        if unit.colour:
            plate = (x, y + 1, x + width, y + _LINE - 7)
            draw.rounded_rectangle(plate, radius=5, fill=_tint(unit.colour))
            draw.rectangle((x + 2, plate[3] - 2, x + width - 2, plate[3]), fill=unit.colour)
            x += pad
        for text, small in unit.parts:
            ink = _DIM if small else _INK
            draw.text((x, y + base), text, fill=ink, font=_font(small), anchor="ls")
            x += _font(small).getlength(text) + space
    return sheet


def _tint(colour: str) -> tuple[int, ...]:
    """The colour at a fifth of its strength."""
    return tuple(round(255 - (255 - value) / 5) for value in ImageColor.getrgb(colour))


# All ----------------------------------------------------------------------------------------------


def draw(root: pathlib.Path, row: Row, response: str, score: scoring.RowScore) -> Image.Image:
    """The whole picture."""
    count = len(row.images)
    found = spans.read(response, count, score.target_image or 1)
    image, box = score.image or score.target_image or 1, fraction_to_grid(score.box)
    colours, drawings = [], [[] for _ in row.images]
    for number, name in enumerate(found.names):
        places = [place for place in found.places if place.object == number]
        answered = any((p.image, fraction_to_grid(p.box)) == (image, box) for p in places)
        colours.append(_ANSWER if answered else _OBJECTS[number % len(_OBJECTS)])
        caption = f"answer: {name}" if answered and name else "answer" if answered else name
        for place in places:
            drawing = pictures.Drawing(fraction_to_grid(place.box), colours[-1], caption)
            drawings[place.image - 1].append(drawing)
    for marks in drawings:
        marks.sort(key=lambda drawing: drawing.colour == _ANSWER)  # the answer over the others
    thoughts, answer = sections(found.pieces)
    said = f"in image {image}; IoU with the true box {score.iou:.2f}"
    asked = spans.read(row.question, count)
    paragraphs = [
        ("Question", units(asked.pieces, [_DIM] * len(asked.names))),
        ("Thoughts", units(thoughts, colours)),
        ("Answer", [*units(answer, colours), *units([f" {said}"], [])]),
    ]
    above, below = draw_images(root, row.images, drawings), draw_text(paragraphs)
    height = _MARGIN + above.height + _GAP + below.height + _MARGIN // 2
    sheet = Image.new("RGB", (_WIDTH, height), "white")
    sheet.paste(above, (0, _MARGIN))
    sheet.paste(below, (0, _MARGIN + above.height + _GAP))
    return sheet


def main(_):
    output = cli.output_file(_OUTPUT)
    pictures.check_picture(output)
    run = pathlib.Path(_RUN.value)
    rows = load_benchmark(run / "scenes/eval.json")
    responses = load_predictions(run / _STAGE.value / "eval/predictions.jsonl", len(rows))
    scores = scoring.score(rows, responses)
    index = choose(rows, responses, scores) if _ROW.value is None else _ROW.value
    score = next((each for each in scores.rows if each.index == index), None)
    if score is None or score.box is None:
        raise ConfigError(f"--row={index}: no such row, or its response has no box")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(run / "scenes", rows[index], responses[index], score).save(output, optimize=True)
    print(f"{output}: row {index}, {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    cli.run(main)

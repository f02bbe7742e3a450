"""Multi-image questions about procedural pictures, for the seven training tasks.

A puzzle holds everything needed for a trajectory: all objects of all images, and the look-up that
leads to the answer (trajectories/scene_teacher.py writes it as text). Data sets are written in the
formats of the real ones, with images as PNG files.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mirg_jax.data.examples import Example, Target, write_mgrounding, write_mig_bench
from mirg_jax.errors import DataError
from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.grammar import (
    OBJECT_END,
    OBJECT_START,
    ORDINALS,
    GroundedObject,
    format_box,
    format_id,
)
from mirg_jax.scenes.drawing import (
    LOOKS,
    Ground,
    Look,
    Thing,
    all_apart,
    choose_looks,
    close_up,
    draw,
    left_to_right,
    place,
    push_out,
    snap,
)


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A question about several images.

    Attributes:
      task: name of the task.
      images: the pictures.
      things: objects of each image, numbered from left to right.
      question: the question's text.
      look_up: the last step of the reasoning, as text with IDs.
      target: image and number of the object asked for, both from 1.
    """

    task: str
    images: tuple[UInt8[np.ndarray, "56 56 3"], ...]
    things: tuple[tuple[Thing, ...], ...]
    question: str
    look_up: str
    target: tuple[int, int]

    @property
    def answer(self) -> Thing:
        """The object asked for."""
        image, number = self.target
        return self.things[image - 1][number - 1]


def named(name: str) -> str:
    """Formats an object's name with its tokens."""
    return f"{OBJECT_START}{name}{OBJECT_END}"


def look_up(where: str, name: str, target: tuple[int, int]) -> str:
    """Formats the sentence that every trajectory's reasoning ends with."""
    return f"Look {where}: {named(name)}{format_id(*target)}."


def seen(image: int, number: int) -> str:
    """Formats the sentence that names the object that the question refers to."""
    return f"Object: {format_id(image, number)}."


def annotate(
    puzzle: Puzzle, rng: np.random.Generator, error: float
) -> tuple[tuple[GroundedObject, ...], ...]:
    """Returns all objects of each image with the boxes of an imperfect annotator (`push_out`)."""
    return tuple(
        tuple(
            GroundedObject(push_out(rng, thing.box, error), n, m, thing.name)
            for m, thing in enumerate(things, start=1)
        )
        for n, things in enumerate(puzzle.things, start=1)
    )


# The tasks ----------------------------------------------------------------------------------------


def _pictures(
    rng: np.random.Generator, scenes: Sequence[Sequence[Thing]]
) -> tuple[UInt8[np.ndarray, "56 56 3"], ...]:
    return tuple(draw(rng, things, Ground.random(rng)) for things in scenes)


def _number(things: Sequence[Thing], look: Look) -> int:
    return next(m for m, thing in enumerate(things, start=1) if thing.look == look)


def in_image(rng: np.random.Generator, image: int) -> str:
    """Refers to an image in one of MIG-Bench's wordings, chosen at random."""
    return str(
        rng.choice(
            [f"in the {image}th image", f"in the {ORDINALS[image - 1]} image", f"in image-{image}"]
        )
    )


def _maybe(rng: np.random.Generator, look: Look) -> list[Look]:
    """Returns a second look for an image with probability 0.65, else none."""
    return [look] if rng.random() < 0.65 else []


def region(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: a picture of two objects and a close-up of each; where is one close-up?"""
    while True:
        things = place(rng, choose_looks(rng, 2))
        image = draw(rng, things, Ground.random(rng))
        order = rng.permutation(2)
        cuts = [close_up(rng, image, things, number) for number in order]
        if all(cuts):
            break
    n = int(rng.integers(1, 3))
    name, target = things[order[n - 1]].name, (1, int(order[n - 1]) + 1)
    question = rng.choice(
        [
            f"Here is a source image with its regions. Please locate the {n}th region in it.",
            f"Please locate the {n}th region picture in the source image.",
        ]
    )
    return Puzzle(
        "region",
        (image, *(cut for cut, _ in cuts)),
        (things, *((thing,) for _, thing in cuts)),
        str(question),
        f"{seen(n + 1, 1)} {look_up('in image 1', name, target)}",
        target,
    )


def group_grounding(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: different objects in three images; where is the one described?"""
    looks = choose_looks(rng, 6)
    scenes = [place(rng, [looks.pop()] + _maybe(rng, looks.pop())) for _ in range(3)]
    n = int(rng.integers(1, 4))
    m = int(rng.integers(1, len(scenes[n - 1]) + 1))
    thing = scenes[n - 1][m - 1]
    described = named(thing.name)
    question = rng.choice(
        [f"Please find the area described by {described}.", f"Where in the images is {described}?"]
    )
    return Puzzle(
        "group_grounding",
        _pictures(rng, scenes),
        tuple(scenes),
        str(question),
        look_up("everywhere", thing.name, (n, m)),
        (n, m),
    )


def common_object(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: three images that share one object; where is it in one of them?"""
    shared, *others = choose_looks(rng, 4)
    scenes = [place(rng, [shared] + _maybe(rng, other)) for other in others]
    n = int(rng.integers(1, 4))
    target = n, _number(scenes[n - 1], shared)
    where, name = in_image(rng, n), " ".join(shared)
    question = rng.choice(
        [
            f"These images share one object in common. Locate it {where}.",
            f"Recognize the object common to all images and locate it {where}.",
        ]
    )
    return Puzzle(
        "common_object",
        _pictures(rng, scenes),
        tuple(scenes),
        str(question),
        look_up(f"in image {n} for what is common", name, target),
        target,
    )


def refer_grounding(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: image 1 shows one object; where is the same object in another image?"""
    shown, *others = choose_looks(rng, 5)
    n = int(rng.integers(2, 4))
    scenes = [place(rng, [shown], sides=(300, 600))]
    for image in (2, 3):
        mine = [shown] if image == n or rng.random() < 0.3 else [others.pop()]
        scenes.append(place(rng, mine + _maybe(rng, others.pop())))
    target = n, _number(scenes[n - 1], shown)
    where, name = in_image(rng, n), " ".join(shown)
    question = rng.choice(
        [
            f"Find and locate the object of image-1 {where}.",
            f"Where is the object of the first image {where}?",
        ]
    )
    return Puzzle(
        "refer_grounding",
        _pictures(rng, scenes),
        tuple(scenes),
        str(question),
        f"{seen(1, 1)} {look_up(f'in image {n}', name, target)}",
        target,
    )


def diff(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: two equal pictures except for one object; what is new in the second?

    The object is either added in the second picture or has another look there.
    """
    first, second, new = choose_looks(rng, 3)
    scene = place(rng, [first, second])
    changed = int(rng.integers(2))
    after = list(scene)
    after[changed] = Thing(*new, scene[changed].box)
    before = scene if rng.random() < 0.5 else (scene[1 - changed],)
    ground = Ground.random(rng)
    question = rng.choice(
        [
            "Compare these two images and locate their difference in the second image.",
            "What is different in the second image? Please locate it.",
        ]
    )
    target, name = (2, changed + 1), " ".join(new)
    return Puzzle(
        "diff",
        (draw(rng, before, ground), draw(rng, after, ground)),
        (tuple(before), tuple(after)),
        str(question),
        look_up("in image 2 for what is new", name, target),
        target,
    )


def object_tracking(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: three frames with moving objects; where is the one marked in the first?"""
    look, other = choose_looks(rng, 2)
    scenes = [place(rng, [look] + _maybe(rng, other))]
    while len(scenes) < 3:
        scenes.append(_moved(rng, scenes[-1]))
    ground = Ground.random(rng)
    marked = int(rng.integers(len(scenes[0])))
    thing = scenes[0][marked]
    n = int(rng.integers(2, 4))
    target = n, _number(scenes[n - 1], thing.look)
    where, box = in_image(rng, n), format_box(thing.box)
    question = rng.choice(
        [
            f"For the moving object marked in the first image {box}, please locate it {where}.",
            f"Find the object at {box} of the first image and locate it {where}.",
        ]
    )
    return Puzzle(
        "object_tracking",
        tuple(draw(rng, things, ground) for things in scenes),
        tuple(scenes),
        str(question),
        f"{seen(1, marked + 1)} {look_up(f'in image {n}', thing.name, target)}",
        target,
    )


def _moved(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Moves each object by up to a quarter of the picture along each axis."""
    while True:
        moved = []
        for thing in things:
            x, y, x2, y2 = thing.box
            side = x2 - x
            x, y = (int(np.clip(c + rng.integers(-250, 251), 0, GRID - side)) for c in (x, y))
            moved.append(Thing(*thing.look, snap([x, y, x + side, y + side])))
        if all_apart(moved):
            return left_to_right(moved)


def reasoning(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: which object has the same colour or shape as the object in image 1?"""
    n = int(rng.integers(2, 4))
    by_colour = bool(rng.integers(2))
    axis = 0 if by_colour else 1
    shown, *rest = choose_looks(rng, len(LOOKS))
    alike = next(look for look in rest if look[axis] == shown[axis])
    other = [look for look in rest if look[axis] != shown[axis]]
    scenes = [place(rng, [shown], sides=(300, 600))]
    for image in (2, 3):
        mine = [alike] if image == n else [other.pop()]
        scenes.append(place(rng, mine + _maybe(rng, other.pop())))
    target = n, _number(scenes[n - 1], alike)
    where = in_image(rng, n)
    word, what = ("colour", f"{shown[0]} object") if by_colour else ("shape", f"any {shown[1]}")
    question = rng.choice(
        [
            f"Which object has the {word} of the object of image-1? Find it {where}.",
            f"Image-1 shows an object. Find the object of the same {word} {where}.",
        ]
    )
    return Puzzle(
        "reasoning",
        _pictures(rng, scenes),
        tuple(scenes),
        str(question),
        f"{seen(1, 1)} {look_up(f'in image {n}', what, target)}",
        target,
    )


# Files --------------------------------------------------------------------------------------------

PUZZLES: dict[str, Callable[[np.random.Generator], Puzzle]] = {
    make.__name__: make
    for make in (
        common_object,
        diff,
        reasoning,
        group_grounding,
        object_tracking,
        refer_grounding,
        region,
    )
}


_SPLITS = ("sft", "rl", "eval")


def find_puzzle(name: str, seed: int) -> tuple[Puzzle, np.random.Generator]:
    """Recreates the puzzle with a question's ID in the data set of the given seed.

    Args:
      name: the question's ID.
      seed: the data set's random seed.

    Returns:
      The puzzle, and its random number generator for further random values.

    Raises:
      DataError: if the ID does not belong to such a data set.
    """
    match = re.fullmatch(rf"(?:.*_)?({'|'.join(_SPLITS)})_([0-9]{{5,9}})", name)
    if not match:
        raise DataError(f"{name!r} is not the id of a procedural scene")
    index = int(match[2])
    rng = np.random.default_rng([seed, _SPLITS.index(match[1]), index])
    return list(PUZZLES.values())[index % len(PUZZLES)](rng), rng


def write_dataset(
    folder: str | pathlib.Path, *, seed: int, sft: int, rl: int, evaluation: int
) -> None:
    """Writes data sets of questions with exact answers; no scene occurs in two of the files.

    Tasks alternate. The files are:

    - `sft.json` (to be annotated with trajectories) and `rl.json`, in MGrounding-630k's format,
    - `eval.json`, in MIG-Bench's format,
    - `images/`; image paths are relative to `folder`.

    Args:
      folder: where to write.
      seed: random seed.
      sft: number of questions in `sft.json`.
      rl: number of questions in `rl.json`.
      evaluation: number of questions in `eval.json`.
    """
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)

    def examples(split: str, count: int) -> list[Example]:
        return [_write_puzzle(folder, f"{split}_{i:05d}", seed) for i in range(count)]

    write_mgrounding(folder / "sft.json", examples("sft", sft))
    write_mgrounding(folder / "rl.json", examples("rl", rl))
    write_mig_bench(folder / "eval.json", examples("eval", evaluation))


def _write_puzzle(folder: pathlib.Path, stem: str, seed: int) -> Example:
    """Draws one puzzle, saves its images and returns its example."""
    puzzle, _ = find_puzzle(stem, seed)
    paths = tuple(f"images/{stem}_{n}.png" for n in range(1, len(puzzle.images) + 1))
    for path, image in zip(paths, puzzle.images, strict=True):
        Image.fromarray(image).save(folder / path, compress_level=1)
    target = Target(puzzle.answer.box, puzzle.target[0], puzzle.answer.name)
    return Example(f"{puzzle.task}_{stem}", puzzle.task, paths, puzzle.question, (target,))

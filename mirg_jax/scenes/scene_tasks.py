"""Multi-image questions about procedural pictures, for the seven training tasks.

Each puzzle knows everything a trajectory says: all things of all images and the look-up that leads
to the answer (trajectories/scene_teacher.py says it). Written to disk in the formats of the real
data sets, with images as PNG files.
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
      things: of each image, numbered from left to right.
      look_up: the last step of the reasoning, in words and ids.
      target: image and number of the thing asked for, both from 1.
    """

    task: str
    images: tuple[UInt8[np.ndarray, "56 56 3"], ...]
    things: tuple[tuple[Thing, ...], ...]
    question: str
    look_up: str
    target: tuple[int, int]

    @property
    def answer(self) -> Thing:
        image, number = self.target
        return self.things[image - 1][number - 1]


def named(name: str) -> str:
    return f"{OBJECT_START}{name}{OBJECT_END}"


def look_up(where: str, name: str, target: tuple[int, int]) -> str:
    """The sentence in which every trajectory ends."""
    return f"Look {where}: {named(name)}{format_id(*target)}."


def seen(image: int, number: int) -> str:
    """Which thing the question is about."""
    return f"Object: {format_id(image, number)}."


def annotate(
    puzzle: Puzzle, rng: np.random.Generator, error: float
) -> tuple[tuple[GroundedObject, ...], ...]:
    """All things of each image with the boxes of an annotator who draws them up to `error` sides
    too large."""
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
    """MIG-Bench's ways to name an image."""
    return str(
        rng.choice(
            [f"in the {image}th image", f"in the {ORDINALS[image - 1]} image", f"in image-{image}"]
        )
    )


def _maybe(rng: np.random.Generator, look: Look) -> list[Look]:
    """A second thing for an image, more often than not."""
    return [look] if rng.random() < 0.65 else []


def region(rng: np.random.Generator) -> Puzzle:
    """A picture of two things and a close-up of each: where does one of them come from?"""
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
    """Different things in three images: which image holds the one described, and where?"""
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
    """Three images that share one thing: where is it in one of them?"""
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
    """Image 1 shows one thing: where is the like of it in another image?"""
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
    """The same picture twice, but for a thing that is new or looks otherwise in the second."""
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
    """Three frames of moving things; one is marked by its box in the first."""
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
    """The things a moment later: each moved by up to a quarter of the picture."""
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
    """Which thing of another image shares the colour, or the shape, of the one in image 1?"""
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
    """The puzzle of a question's id in a data set of this seed, and what to draw on with.

    Raises:
      DataError: the id is not of such a data set.
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
    """Writes questions with exact answers: the tasks in turn, no scene in two of the files.

    - `sft.json`, to be given trajectories, and `rl.json`: in MGrounding-630k's format.
    - `eval.json`: in MIG-Bench's.
    - `images/`: the image root is `folder`.

    Args:
      seed: of everything; other seeds give other scenes.
      sft: how many questions of `sft.json`.
      rl: of `rl.json`.
      evaluation: of `eval.json`.
    """
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)

    def examples(split: str, count: int) -> list[Example]:
        return [_write_puzzle(folder, f"{split}_{i:05d}", seed) for i in range(count)]

    write_mgrounding(folder / "sft.json", examples("sft", sft))
    write_mgrounding(folder / "rl.json", examples("rl", rl))
    write_mig_bench(folder / "eval.json", examples("eval", evaluation))


def _write_puzzle(folder: pathlib.Path, stem: str, seed: int) -> Example:
    """Draws and saves one puzzle."""
    puzzle, _ = find_puzzle(stem, seed)
    paths = tuple(f"images/{stem}_{n}.png" for n in range(1, len(puzzle.images) + 1))
    for path, image in zip(paths, puzzle.images, strict=True):
        Image.fromarray(image).save(folder / path, compress_level=1)
    target = Target(puzzle.answer.box, puzzle.target[0], puzzle.answer.name)
    return Example(f"{puzzle.task}_{stem}", puzzle.task, paths, puzzle.question, (target,))

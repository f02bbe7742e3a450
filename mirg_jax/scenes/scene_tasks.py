"""Multi-image questions about procedural pictures, for the seven training tasks, and their files.

Data sets are written in the formats of the real ones, with images as PNG files. The benchmark's
other three tasks are in `view_tasks.py`.
"""

import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mirg_jax.data.examples import Example, Target, write_mgrounding, write_mig_bench
from mirg_jax.errors import DataError
from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.scenes import view_tasks
from mirg_jax.scenes.drawing import (
    LOOKS,
    Ground,
    Thing,
    all_apart,
    choose_looks,
    close_up,
    draw,
    left_to_right,
    place,
    snap,
)
from mirg_jax.scenes.puzzles import (
    Puzzle,
    ask_for_marked,
    ask_what_is_new,
    in_image,
    look_up,
    maybe,
    named,
    number_of,
    pictures,
    seen,
)

# The tasks ----------------------------------------------------------------------------------------


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
    scenes = [place(rng, [looks.pop()] + maybe(rng, looks.pop())) for _ in range(3)]
    n = int(rng.integers(1, 4))
    m = int(rng.integers(1, len(scenes[n - 1]) + 1))
    thing = scenes[n - 1][m - 1]
    described = named(thing.name)
    question = rng.choice(
        [f"Please find the area described by {described}.", f"Where in the images is {described}?"]
    )
    return Puzzle(
        "group_grounding",
        pictures(rng, scenes),
        tuple(scenes),
        str(question),
        look_up("everywhere", thing.name, (n, m)),
        (n, m),
    )


def common_object(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: three images that share one object; where is it in one of them?"""
    shared, *others = choose_looks(rng, 4)
    scenes = [place(rng, [shared] + maybe(rng, other)) for other in others]
    n = int(rng.integers(1, 4))
    target = n, number_of(scenes[n - 1], shared)
    where, name = in_image(rng, n), " ".join(shared)
    question = rng.choice(
        [
            f"These images share one object in common. Locate it {where}.",
            f"Recognize the object common to all images and locate it {where}.",
        ]
    )
    return Puzzle(
        "common_object",
        pictures(rng, scenes),
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
        scenes.append(place(rng, mine + maybe(rng, others.pop())))
    target = n, number_of(scenes[n - 1], shown)
    where, name = in_image(rng, n), " ".join(shown)
    question = rng.choice(
        [
            f"Find and locate the object of image-1 {where}.",
            f"Where is the object of the first image {where}?",
        ]
    )
    return Puzzle(
        "refer_grounding",
        pictures(rng, scenes),
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
    questions = (
        "Compare these two images and locate their difference in the second image.",
        "What is different in the second image? Please locate it.",
    )
    return ask_what_is_new(rng, "diff", scene, scene, new, questions, same_light=True)


def object_tracking(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: three frames with moving objects; where is the one marked in the first?"""
    look, other = choose_looks(rng, 2)
    scenes = [place(rng, [look] + maybe(rng, other))]
    while len(scenes) < 3:
        scenes.append(_moved(rng, scenes[-1]))
    ground = Ground.random(rng)
    questions = (
        "For the moving object marked in the first image {box}, please locate it {where}.",
        "Find the object at {box} of the first image and locate it {where}.",
    )

    def show():
        return tuple(draw(rng, things, ground) for things in scenes)

    return ask_for_marked(rng, "object_tracking", scenes, questions, show)


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
        scenes.append(place(rng, mine + maybe(rng, other.pop())))
    target = n, number_of(scenes[n - 1], alike)
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
        pictures(rng, scenes),
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
        view_tasks.view_diff,
        view_tasks.multi_view,
        view_tasks.correspondence,
    )
}

# The tasks of a data set, in the order in which they alternate.
TASKS: dict[str, tuple[str, ...]] = {"training": TRAINING_TASKS, "all": tuple(PUZZLES)}

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
    match = re.fullmatch(rf"({'|'.join(PUZZLES)})_({'|'.join(_SPLITS)})_([0-9]{{5,9}})", name)
    if not match:
        raise DataError(f"{name!r} is not the id of a procedural scene")
    rng = np.random.default_rng([seed, _SPLITS.index(match[2]), int(match[3])])
    return PUZZLES[match[1]](rng), rng


def write_dataset(
    folder: str | pathlib.Path,
    *,
    seed: int,
    sft: int,
    rl: int,
    evaluation: int,
    tasks: str = "training",
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
      tasks: "training" for the seven that the paper trains on, "all" for the benchmark's ten.
    """
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = TASKS[tasks]

    def examples(split: str, count: int) -> list[Example]:
        return [
            _write_puzzle(folder, names[i % len(names)], f"{split}_{i:05d}", seed)
            for i in range(count)
        ]

    write_mgrounding(folder / "sft.json", examples("sft", sft))
    write_mgrounding(folder / "rl.json", examples("rl", rl))
    write_mig_bench(folder / "eval.json", examples("eval", evaluation))


def _write_puzzle(folder: pathlib.Path, task: str, stem: str, seed: int) -> Example:
    """Draws one puzzle, saves its images and returns its example."""
    name = f"{task}_{stem}"
    puzzle, _ = find_puzzle(name, seed)
    paths = tuple(f"images/{stem}_{n}.png" for n in range(1, len(puzzle.images) + 1))
    for path, image in zip(paths, puzzle.images, strict=True):
        Image.fromarray(image).save(folder / path, compress_level=1)
    target = Target(puzzle.answer.box, puzzle.target[0], puzzle.answer.name)
    return Example(name, task, paths, puzzle.question, (target,))

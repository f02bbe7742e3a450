"""Questions of the benchmark's three tasks that no training data has, about procedural pictures.

Robust Difference and Multi-View show a scene from several views: nearer or farther, moved, from
behind, in other light. Co-Reference asks for what means the same, which is here the same shape.
"""

from collections.abc import Sequence

import numpy as np

from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.grammar import format_box
from mirg_jax.scenes.drawing import (
    COLOURS,
    SHAPES,
    STEP,
    Thing,
    all_apart,
    choose_looks,
    left_to_right,
    place,
)
from mirg_jax.scenes.puzzles import (
    Puzzle,
    ask_for_marked,
    ask_what_is_new,
    look_up,
    maybe,
    number_of,
    pictures,
    seen,
)

_SIDES = 180, 640  # smallest and largest side of an object in another view, in grid units
_TRIES = 30


def other_view(
    rng: np.random.Generator, things: Sequence[Thing], *, mirrored: bool = False
) -> tuple[Thing, ...] | None:
    """Places objects as another camera shows them: all moved together, nearer or farther.

    Args:
      rng: random number generator.
      things: the objects.
      mirrored: whether the camera is behind the scene, so that left and right change places.

    Returns:
      The objects, numbered from left to right; None if no view was found that shows all of them.
    """
    for _ in range(_TRIES):
        zoom, shift = rng.uniform(0.75, 1.35), rng.uniform(-300, 300, size=2)
        if abs(zoom - 1) < 0.1 and abs(shift).max() < 100:
            continue  # too much like the view it is made from
        moved = []
        for thing in things:
            x1, y1, x2, y2 = thing.box
            centre = np.array([x1 + x2, y1 + y2]) / 2 - GRID / 2
            if mirrored:
                centre[0] *= -1
            side = STEP * round(zoom * (x2 - x1) / STEP)
            corner = GRID / 2 + zoom * centre + shift - side / 2
            x, y = (STEP * round(float(c) / STEP) for c in corner)
            moved.append(Thing(*thing.look, (x, y, x + side, y + side)))
        if all(map(_is_whole, moved)) and all_apart(moved):
            return left_to_right(moved)
    return None


def _is_whole(thing: Thing) -> bool:
    x1, y1, x2, y2 = thing.box
    smallest, largest = _SIDES
    return min(x1, y1) >= 0 and max(x2, y2) <= GRID and smallest <= x2 - x1 <= largest


def view_diff(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: two views of a scene, one object apart; what is new in the second?

    As in `scene_tasks.diff` the object is added or has another look; every box changes, though.
    """
    first, second, new = choose_looks(rng, 3)
    after = None
    while after is None:
        scene = place(rng, [first, second])
        after = other_view(rng, scene)
    questions = (
        "Compare these two images and locate their real difference in the second image.",
        "What is different in the second view? Please locate it.",
    )
    return ask_what_is_new(rng, "view_diff", scene, after, new, questions, same_light=False)


def multi_view(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: three views of a scene; where is the object marked in the first one?"""
    look, other = choose_looks(rng, 2)
    views = [None]
    while not all(views):
        scene = place(rng, [look, *maybe(rng, other)])
        views = [other_view(rng, scene, mirrored=bool(rng.integers(2))) for _ in range(2)]
    scenes = [scene, *views]
    questions = (
        "These images share the object marked in the first image {box}. Locate it {where}.",
        "Recognize the object marked at {box} of the first image and locate it {where}.",
    )
    return ask_for_marked(rng, "multi_view", scenes, questions, lambda: pictures(rng, scenes))


def correspondence(rng: np.random.Generator) -> Puzzle:
    """Creates a puzzle: which area of image 2 corresponds to the one marked in image 1?

    It is the one of the same shape. Its colour is of no use: it is another one, and the other
    object of image 2 may have the colour of the marked one.
    """
    marked, other = rng.choice(SHAPES, 2, replace=False).tolist()
    first, second, third, last = rng.choice(list(COLOURS), 4, replace=False).tolist()
    scene = place(rng, [(first, marked), (second, other)])
    decoy = first if rng.random() < 0.5 else last
    scenes = [scene, place(rng, [(third, marked), (decoy, other)])]
    m = number_of(scene, (first, marked))
    target = 2, number_of(scenes[1], (third, marked))
    box = format_box(scene[m - 1].box)
    question = rng.choice(
        [
            f"For the area marked in the first image {box}, locate the corresponding area in the "
            "second image.",
            f"Find the area of the second image corresponding to the one at {box} of the first "
            "image.",
        ]
    )
    return Puzzle(
        "correspondence",
        pictures(rng, scenes),
        tuple(scenes),
        str(question),
        f"{seen(1, m)} {look_up('in image 2', f'any {marked}', target)}",
        target,
    )

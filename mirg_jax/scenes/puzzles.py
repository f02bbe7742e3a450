"""Puzzles, which are multi-image questions about procedural pictures, and the phrases they share.

A puzzle holds everything needed for a trajectory: all objects of all images, and the look-up that
leads to the answer (trajectories/scene_teacher.py writes it as text).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from mirg_jax.grounding.grammar import (
    OBJECT_END,
    OBJECT_START,
    ORDINALS,
    GroundedObject,
    format_box,
    format_id,
)
from mirg_jax.scenes.drawing import Ground, Look, Thing, draw, push_out


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


def pictures(
    rng: np.random.Generator, scenes: Sequence[Sequence[Thing]]
) -> tuple[UInt8[np.ndarray, "56 56 3"], ...]:
    """Draws each scene on a background of its own."""
    return tuple(draw(rng, things, Ground.random(rng)) for things in scenes)


def number_of(things: Sequence[Thing], look: Look) -> int:
    """Returns the number, from 1, of the first object with a look."""
    return next(m for m, thing in enumerate(things, start=1) if thing.look == look)


def in_image(rng: np.random.Generator, image: int) -> str:
    """Refers to an image in one of MIG-Bench's wordings, chosen at random."""
    return str(
        rng.choice(
            [f"in the {image}th image", f"in the {ORDINALS[image - 1]} image", f"in image-{image}"]
        )
    )


def ask_what_is_new(
    rng: np.random.Generator,
    task: str,
    things: Sequence[Thing],
    after: Sequence[Thing],
    new: Look,
    questions: Sequence[str],
    *,
    same_light: bool,
) -> Puzzle:
    """Returns the puzzle of two pictures, in the second of which one object is new.

    The object is either added there or has another look.

    Args:
      rng: random number generator.
      task: name of the task.
      things: two objects, as the first picture shows them.
      after: the same objects where they are in the second.
      new: the look of the one that is new.
      questions: the question's wordings.
      same_light: whether both pictures have the same background.
    """
    changed = int(rng.integers(2))
    second = list(after)
    second[changed] = Thing(*new, after[changed].box)
    first = things if rng.random() < 0.5 else (things[1 - changed],)
    ground = Ground.random(rng)
    light = ground
    if not same_light:
        light = dataclasses.replace(Ground.random(rng), colour=ground.colour)
    question = rng.choice(questions)
    target, name = (2, changed + 1), " ".join(new)
    return Puzzle(
        task,
        (draw(rng, first, ground), draw(rng, second, light)),
        (tuple(first), tuple(second)),
        str(question),
        look_up("in image 2 for what is new", name, target),
        target,
    )


def ask_for_marked(
    rng: np.random.Generator,
    task: str,
    scenes: Sequence[tuple[Thing, ...]],
    questions: Sequence[str],
    show: Callable[[], tuple[UInt8[np.ndarray, "56 56 3"], ...]],
) -> Puzzle:
    """Returns the puzzle that marks an object of the first picture and asks for it in another.

    Args:
      rng: random number generator.
      task: name of the task.
      scenes: objects of each picture.
      questions: the question's wordings, with {box} and {where}.
      show: draws the pictures.
    """
    marked = int(rng.integers(len(scenes[0])))
    thing = scenes[0][marked]
    n = int(rng.integers(2, 4))
    target = n, number_of(scenes[n - 1], thing.look)
    where, box = in_image(rng, n), format_box(thing.box)
    question = str(rng.choice(questions)).format(where=where, box=box)
    return Puzzle(
        task,
        show(),
        tuple(scenes),
        question,
        f"{seen(1, marked + 1)} {look_up(f'in image {n}', thing.name, target)}",
        target,
    )


def maybe(rng: np.random.Generator, look: Look) -> list[Look]:
    """Returns a second look for an image with probability 0.65, else none."""
    return [look] if rng.random() < 0.65 else []

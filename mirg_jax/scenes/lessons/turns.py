"""Conversations that the small base model is pretrained on: single images and look-ups in lists.

There are two kinds, both in the format of the trajectories:

- `single_image`: a few turns, each with one new picture and a question about one of the pictures
  shown so far. The response lists that picture's objects and then looks one up.
- `look_up_in_list`: no picture. The list of objects of up to three images is given, and a short
  command asks for one of them.

None of the conversations has a multi-image question of the tasks.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mirg_jax.grounding.grammar import (
    ANSWER_END,
    ANSWER_START,
    END_OF_TURN,
    THINK_END,
    THINK_START,
    GroundedObject,
    format_answer,
    format_box,
    format_id,
    format_object,
)
from mirg_jax.scenes.drawing import LOOKS, Look, Thing, choose_looks, place, push_out
from mirg_jax.scenes.puzzles import in_image, look_up, named, seen

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn of a conversation."""

    question: str
    given: str  # beginning of the response, part of the prompt
    response: str  # rest of the response, which is learned

    @property
    def prompt(self) -> str:
        """The text without loss."""
        asked = f"<|im_start|>user\n{self.question}{END_OF_TURN}\n<|im_start|>assistant\n"
        return asked + self.given

    @property
    def learned(self) -> str:
        """The text with loss."""
        return self.response + END_OF_TURN


def _list(image: int, things: Sequence[Thing]) -> str:
    return "".join(
        format_object(GroundedObject(thing.box, image, m, thing.name))
        for m, thing in enumerate(things, start=1)
    )


def _conclude(thinking: str, target: tuple[int, int], thing: Thing) -> str:
    answer = format_answer([GroundedObject(thing.box, *target)])
    return f" {thinking}{THINK_END}{ANSWER_START}{answer}{ANSWER_END}"


def _attribute(rng: np.random.Generator, things: Sequence[Thing], m: int) -> str | None:
    """Returns a name by colour only or by shape only; None if other objects than m fit it too."""
    thing = things[m - 1]
    axis = int(rng.integers(2))
    if sum(other.look[axis] == thing.look[axis] for other in things) > 1:
        return None
    return f"{thing.colour} object" if axis == 0 else f"any {thing.shape}"


def single_image(
    rng: np.random.Generator, scenes: Sequence[Sequence[Thing]], first: int = 1
) -> list[Turn]:
    """Creates a conversation about pictures, one new picture per turn.

    Args:
      rng: random number generator.
      scenes: objects of each picture.
      first: number of the first picture.
    """
    turns = []
    for shown in range(first, first + len(scenes)):
        n = shown if rng.random() < 0.6 else int(rng.integers(first, shown + 1))
        things = scenes[n - first]
        m = int(rng.integers(1, len(things) + 1))
        thing, before = things[m - 1], ""
        where, name = in_image(rng, n), thing.name
        kind = rng.choice(["name", "box", "attribute"], p=[0.5, 0.25, 0.25])
        if kind == "attribute":
            name = _attribute(rng, things, m) or name
        if kind == "box":
            box = format_box(push_out(rng, thing.box, 0.05))
            question = rng.choice(
                [f"Find the object at {box} {where}.", f"What is at {box} {where}?"]
            )
            before = seen(n, m) + " "
        else:
            question = rng.choice(
                [f"Please locate {named(name)} {where}.", f"Where {where} is {named(name)}?"]
            )
        thinking = before + look_up(f"in image {n}", name, (n, m))
        turns.append(
            Turn(
                f"Image-{shown}: {IMAGE}{question}",
                "",
                THINK_START + _list(n, things) + _conclude(thinking, (n, m), thing),
            )
        )
    return turns


def look_up_in_list(rng: np.random.Generator) -> Turn:
    """Creates a turn with a given list of objects and a command to look up one of them."""
    return _COMMANDS[int(rng.integers(len(_COMMANDS)))](rng)


def _looks(rng: np.random.Generator, shared: Sequence[Look] = ()) -> list[list[Look]]:
    """Chooses one or two looks for each of two or three images; all images have the shared ones."""
    groups = []
    for _ in range(int(rng.integers(2, 4))):
        count = 1 + int(rng.random() < 0.65) - len(shared)
        groups.append([*shared, *choose_looks(rng, max(count, 0), barred=shared)])
    return groups


def _turn(
    rng: np.random.Generator,
    groups: Sequence[Sequence[Look]],
    target: tuple[int, Look],
    command: str,
    said: str = "",
    *,
    like: tuple[int, Look] | None = None,
    name: str = "",
) -> Turn:
    """Creates a turn about images whose objects have the given looks.

    Args:
      rng: random number generator.
      groups: looks of each image's objects.
      target: image and look of the object asked for.
      command: the question; `{where}` stands for the image, `{like}` for the ID of the object
        compared with, `{box}` for the target's box.
      said: where the response's look-up takes place; by default the target's image.
      like: image and look of the object that the target is compared with.
      name: name that is looked up; by default the target's.
    """
    scenes = [place(rng, looks) for looks in groups]

    def find(image: int, look: Look) -> tuple[int, int]:
        return image, next(m for m, t in enumerate(scenes[image - 1], 1) if t.look == look)

    where = find(*target)
    thing = scenes[where[0] - 1][where[1] - 1]
    before = ""
    if like or "{box}" in command:
        before = seen(*(find(*like) if like else where)) + " "
    question = command.format(
        where=in_image(rng, target[0]),
        like=format_id(*find(*like)) if like else "",
        box=format_box(push_out(rng, thing.box, 0.05)),
    )
    listing = "".join(_list(n, things) for n, things in enumerate(scenes, start=1))
    thinking = before + look_up(said or f"in image {target[0]}", name or thing.name, where)
    return Turn(question, THINK_START + listing, _conclude(thinking, where, thing))


def _choose(rng: np.random.Generator, groups: Sequence[Sequence[Look]]) -> tuple[int, Look]:
    n = int(rng.integers(1, len(groups) + 1))
    return n, groups[n - 1][int(rng.integers(len(groups[n - 1])))]


def _by_name(rng: np.random.Generator) -> Turn:
    # An object of that name is often in the other images too, so that the image matters.
    groups = _looks(rng, shared=choose_looks(rng, 1) if rng.random() < 0.5 else ())
    n, look = _choose(rng, groups)
    return _turn(rng, groups, (n, look), f"Look {{where}} for {named(' '.join(look))}.")


def _everywhere(rng: np.random.Generator) -> Turn:
    looks = choose_looks(rng, 6)
    groups = [looks[i : i + 1 + int(rng.random() < 0.65)] for i in (0, 2, 4)]
    n, look = _choose(rng, groups)
    command = f"Look everywhere for {named(' '.join(look))}."
    return _turn(rng, groups, (n, look), command, "everywhere")


def _at_box(rng: np.random.Generator) -> Turn:
    groups = _looks(rng)
    return _turn(rng, groups, _choose(rng, groups), "Look {where} for the object at {box}.")


def _alike(rng: np.random.Generator) -> Turn:
    """Asks for the object that has the look, only the colour, or only the shape of another one."""
    kind = rng.choice(["all", "colour", "shape"], p=[0.5, 0.25, 0.25])
    n, i = (int(k) for k in 1 + rng.choice(3, 2, replace=False))
    model, other = choose_looks(rng, 2)
    if kind == "all":
        look, name, word = model, " ".join(model), ""
    elif kind == "colour":
        look, name, word = (model[0], other[1]), f"{model[0]} object", " of the same colour"
    else:
        look, name, word = (other[0], model[1]), f"any {model[1]}", " of the same shape"
    unlike = [x for x in LOOKS if x[0] != model[0] and x[1] != model[1]]
    groups = []
    for image in (1, 2, 3):
        extra = [unlike[int(rng.integers(len(unlike)))]]
        own = {n: [look], i: [model]}.get(image)
        groups.append(extra if own is None else own + extra[: int(rng.random() < 0.65)])
    command = f"Look {{where}} for an object{word} like {{like}}."
    return _turn(rng, groups, (n, look), command, like=(i, model), name=name)


def _common(rng: np.random.Generator) -> Turn:
    shared, *others = choose_looks(rng, 4)
    groups = [[shared] + [other][: int(rng.random() < 0.65)] for other in others]
    n = int(rng.integers(1, 4))
    said = f"in image {n} for what is common"
    return _turn(rng, groups, (n, shared), "Look {where} for what is common.", said)


def _new(rng: np.random.Generator) -> Turn:
    old, new, other = choose_looks(rng, 3)
    groups = [[old, other] if rng.random() < 0.5 else [old], [old, new]]
    said = "in image 2 for what is new"
    return _turn(rng, groups, (2, new), "Look {where} for what is new.", said)


_COMMANDS = (_by_name, _everywhere, _at_box, _alike, _alike, _common, _new)

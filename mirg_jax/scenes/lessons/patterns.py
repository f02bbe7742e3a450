"""Targets for attention heads during the pretraining of the small base model.

With ordinary training, so small a model learns look-ups by content late, if at all; a loss on the
attention of a few heads makes it learn them in minutes. A pattern specifies which earlier tokens a
head should attend to from a query token: those whose key code equals the query's code. A query code
of 0 means no target.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mirg_jax.grounding.grammar import (
    ANSWER_START,
    BOX_END,
    BOX_START,
    OBJECT_END,
    OBJECT_START,
    THINK_START,
    format_id,
)
from mirg_jax.scenes.drawing import GRID, Thing

# Pattern → (layer, head) of the decoder.
HEADS: dict[str, tuple[int, int]] = {
    "previous": (0, 0),
    "before_previous": (0, 1),
    "last_id": (0, 2),  # token → the last object ID before it, which it belongs to
    "image": (0, 3),  # visual token or look-up → the number of the image that it belongs to
    "match": (1, 0),  # looked-up name → the same name listed for that image
    "first_thing": (1, 1),  # first object of a list → the visual tokens that it covers
    "second_thing": (1, 1),  # second object of a list → the visual tokens that it covers
    "copy_box": (1, 2),  # coordinate in the answer → the same coordinate in the list
    "like": (1, 3),  # listed name → the same name listed earlier, or the start if there is none
    "box_asked": (1, 3),  # search for the object at a box → that box in the question
    "name_source": (2, 0),  # token before a name → the occurrence that the name is copied from
    "at_box": (2, 1),  # search for the object at a box → the listed box at that place
}
PATTERNS = tuple(HEADS)


class Codes(NamedTuple):
    """Query and key codes of the patterns, in the order of `PATTERNS`."""

    queries: Int[np.ndarray, "*B patterns T"]
    keys: Int[np.ndarray, "*B patterns T"]


class Annotator:
    """Computes the codes of the attention patterns for tokenised conversations.

    Args:
      tokenizer: the small tokenizer.
    """

    def __init__(self, tokenizer):
        def one(text: str) -> int:
            (token,) = tokenizer.encode(text, add_special_tokens=False)
            return token

        self._name_start, self._name_end = one(OBJECT_START), one(OBJECT_END)
        self._box_start, self._box_end = one(BOX_START), one(BOX_END)
        self._think, self._answer = one(THINK_START), one(ANSWER_START)
        self._pad, self._end = one("<|image_pad|>"), one("<|im_end|>")
        self._ids = {one(format_id(n, m)): (n, m) for n in range(1, 5) for m in range(1, 5)}
        self._numbers = {one(f" {n}") for n in range(1, 5)}
        self._labels = {one(f"Image-{n}"): n for n in range(1, 5)}
        self._image, self._object, self._colon = one(" image"), one(" Object"), one(": ")

    def __call__(
        self, tokens: Int[np.ndarray, " T"], scenes: Mapping[int, Sequence[Thing]]
    ) -> Codes:
        """Returns the codes of one conversation.

        Args:
          tokens: the conversation's tokens.
          scenes: objects of the images shown, by image number; empty if only a list is given.
        """
        T = len(tokens)
        queries, keys = np.zeros((2, len(PATTERNS), T), np.int32)
        code = {name: (queries[i], keys[i]) for i, name in enumerate(PATTERNS)}
        positions = np.arange(T)
        for name, back in (("previous", 1), ("before_previous", 2)):
            code[name][0][back:], code[name][1][:] = positions[back:] - back + 1, positions + 1
        for name in ("last_id", "image", "copy_box"):
            code[name][1][:] = positions + 1

        tokens = tokens.tolist()
        looks: dict[tuple[int, int], tuple[int, int]] = {}  # colour and shape of listed objects
        ends: dict[tuple[int, int], int] = {}  # position where a listed object's name ends
        last_id = number = asked_name = asked_box = sought = None
        thinking = answering = False
        label, shown, seen_of_image = None, 0, 0

        for t, token in enumerate(tokens):
            if last_id is not None and (thinking or answering):
                code["last_id"][0][t] = last_id + 1
            if number is not None:
                code["image"][0][t] = number + 1

            if token in self._labels:
                label, shown, seen_of_image = t, self._labels[token], 0
            elif token == self._pad:
                code["image"][0][t] = label + 1
                row, column = divmod(seen_of_image, 2)
                for m, thing in enumerate(scenes[shown]):
                    if _covers(thing, row, column):
                        code[("first_thing", "second_thing")[m]][1][t] = shown
                seen_of_image += 1
            elif token == self._think:
                thinking, looks, ends, sought = True, {}, {}, None
                code["like"][1][t] = code["name_source"][1][t] = -1
            elif token == self._answer:
                answering = True
            elif token == self._end and answering:
                thinking = answering = False
                last_id = number = asked_name = asked_box = None
            elif token == self._box_end and not thinking and not answering:
                asked_box, code["box_asked"][1][t] = t, t + 1
            elif token == self._name_end and not thinking:
                asked_name, code["name_source"][1][t] = t, t + 1
            elif token in self._numbers and thinking and tokens[t - 1] == self._image:
                number = t
            elif token == self._colon and tokens[t - 1] == self._object:
                if asked_box is not None:
                    code["box_asked"][0][t] = asked_box + 1
                    code["at_box"][0][t] = _thing_code(*self._ids[tokens[t + 1]])
            elif token in self._ids and (thinking or answering):
                image, m = self._ids[token]
                last_id, number = t, None
                if answering:  # box_start and three coordinates, copied from the list
                    source = ends[image, m] + 2
                    for i in range(4):
                        code["copy_box"][0][t + 1 + i] = source + i + 1
                elif tokens[t + 1] == self._name_start:
                    self._listed(code, tokens, t, (image, m), looks, ends, bool(scenes))
                elif tokens[t - 1] == self._colon:
                    sought = image, m
            elif token == self._name_start and thinking and tokens[t - 1] not in self._ids:
                # A looked-up name begins. Its target is the ID that follows the name.
                target = self._ids[tokens[t + 4]]
                code["match"][0][t + 3] = _thing_code(*target)
                if sought:
                    source = ends[sought]
                elif asked_name is not None:
                    source = asked_name
                else:
                    same = [e for key, e in ends.items() if looks[key] == looks[target]]
                    source = same[-1]
                for i in (0, 1):
                    code["name_source"][0][t + i] = source + 1
        return Codes(queries, keys)

    def _listed(self, code, tokens, t, key, looks, ends, visual) -> None:
        """Adds the codes of a list entry whose ID is at position t."""
        image, m = key
        look = tokens[t + 2], tokens[t + 3]
        end = t + 4
        code["match"][1][end] = code["at_box"][1][end + 5] = _thing_code(image, m)
        code["name_source"][1][end] = end + 1
        hashed = 1 + look[0] * 1000 + look[1]
        code["like"][1][end] = hashed
        code["like"][0][end] = hashed if look in looks.values() else -1
        looks[key], ends[key] = look, end
        if visual:
            pattern = ("first_thing", "second_thing")[m - 1]
            for i in (0, 1, 2, 5, 6, 7, 8):  # tokens whose next token depends on the image
                code[pattern][0][t + i] = image


def _thing_code(image: int, number: int) -> int:
    return 10 * image + number


def _covers(thing: Thing, row: int, column: int) -> bool:
    """Returns whether an object overlaps the visual token (picture quarter) at (row, column)."""
    x1, y1, x2, y2 = thing.box
    half = GRID // 2
    return (
        x1 < (column + 1) * half
        and x2 > column * half
        and y1 < (row + 1) * half
        and y2 > row * half
    )

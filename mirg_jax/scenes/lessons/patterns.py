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
        self._words = _Words(tokenizer)

    def __call__(
        self, tokens: Int[np.ndarray, " T"], scenes: Mapping[int, Sequence[Thing]]
    ) -> Codes:
        """Returns the codes of one conversation.

        Args:
          tokens: the conversation's tokens.
          scenes: objects of the images shown, by image number; empty if only a list is given.
        """
        reader = _Reader(self._words, tokens.tolist(), scenes)
        for t in range(len(tokens)):
            reader.read(t)
        return reader.codes


class _Words:
    """The tokens that patterns begin or end at."""

    def __init__(self, tokenizer):
        def one(text: str) -> int:
            (token,) = tokenizer.encode(text, add_special_tokens=False)
            return token

        self.name_start, self.name_end = one(OBJECT_START), one(OBJECT_END)
        self.box_end = one(BOX_END)
        self.think, self.answer = one(THINK_START), one(ANSWER_START)
        self.pad, self.end = one("<|image_pad|>"), one("<|im_end|>")
        self.ids = {one(format_id(n, m)): (n, m) for n in range(1, 5) for m in range(1, 5)}
        self.numbers = {one(f" {n}") for n in range(1, 5)}
        self.labels = {one(f"Image-{n}"): n for n in range(1, 5)}
        self.image, self.object, self.colon = one(" image"), one(" Object"), one(": ")


class _Reader:
    """Reads a conversation token by token, and fills in its codes."""

    def __init__(self, words: _Words, tokens: list[int], scenes: Mapping[int, Sequence[Thing]]):
        self._words, self._tokens, self._scenes = words, tokens, scenes
        self.codes = Codes(*np.zeros((2, len(PATTERNS), len(tokens)), np.int32))
        self._code = {name: (self.codes.queries[i], self.codes.keys[i])
                      for i, name in enumerate(PATTERNS)}  # fmt: skip
        positions = np.arange(len(tokens))
        for name, back in (("previous", 1), ("before_previous", 2)):
            queries, keys = self._code[name]
            queries[back:], keys[:] = positions[back:] - back + 1, positions + 1
        for name in ("last_id", "image", "copy_box"):
            self._code[name][1][:] = positions + 1
        # Of the listed objects: colour and shape, and the position where the name ends.
        self._looks: dict[tuple[int, int], tuple[int, int]] = {}
        self._ends: dict[tuple[int, int], int] = {}
        self._label, self._shown, self._seen = 0, 0, 0  # of the image whose visual tokens come
        self._sought: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        """Forgets what belongs to one question and its answer."""
        self._last_id = self._number = self._asked_name = self._asked_box = None  # positions
        self._thinking = self._answering = False

    def read(self, t: int) -> None:
        """Adds the codes of the token at position t, which follows those read before."""
        if self._last_id is not None and (self._thinking or self._answering):
            self._code["last_id"][0][t] = self._last_id + 1
        if self._number is not None:
            self._code["image"][0][t] = self._number + 1
        token = self._tokens[t]
        self._read_picture(t, token)
        self._read_turn(t, token)
        if not self._thinking:
            self._read_question(t, token)
        self._read_thoughts(t, token)
        if token in self._words.ids and (self._thinking or self._answering):
            self._read_id(t, self._words.ids[token])

    def _read_picture(self, t: int, token: int) -> None:
        """Reads an image's label and visual tokens."""
        if token in self._words.labels:
            self._label, self._shown, self._seen = t, self._words.labels[token], 0
        elif token == self._words.pad:
            self._code["image"][0][t] = self._label + 1
            row, column = divmod(self._seen, 2)
            for m, thing in enumerate(self._scenes[self._shown]):
                if _covers(thing, row, column):
                    self._code[("first_thing", "second_thing")[m]][1][t] = self._shown
            self._seen += 1

    def _read_turn(self, t: int, token: int) -> None:
        """Reads where thoughts and answer begin, and where the answer ends."""
        if token == self._words.think:
            self._thinking, self._looks, self._ends, self._sought = True, {}, {}, None
            self._code["like"][1][t] = self._code["name_source"][1][t] = -1
        elif token == self._words.answer:
            self._answering = True
        elif token == self._words.end and self._answering:
            self._forget()

    def _read_question(self, t: int, token: int) -> None:
        """Reads the name or the box that the question asks for."""
        if token == self._words.box_end and not self._answering:
            self._asked_box, self._code["box_asked"][1][t] = t, t + 1
        elif token == self._words.name_end:
            self._asked_name, self._code["name_source"][1][t] = t, t + 1

    def _read_thoughts(self, t: int, token: int) -> None:
        """Reads the look-up: the image, the object it begins from, the name."""
        words, before = self._words, self._tokens[t - 1]
        if token in words.numbers and self._thinking and before == words.image:
            self._number = t
        elif token == words.colon and before == words.object:
            if self._asked_box is not None:
                self._code["box_asked"][0][t] = self._asked_box + 1
                sought = words.ids[self._tokens[t + 1]]
                self._code["at_box"][0][t] = _thing_code(*sought)
        elif token == words.name_start and self._thinking and before not in words.ids:
            self._read_name(t)

    def _read_id(self, t: int, key: tuple[int, int]) -> None:
        """Reads an object's ID: of the list, of the look-up, or of the answer."""
        self._last_id, self._number = t, None
        if self._answering:  # box_start and three coordinates, copied from the list
            source = self._ends[key] + 2
            for i in range(4):
                self._code["copy_box"][0][t + 1 + i] = source + i + 1
        elif self._tokens[t + 1] == self._words.name_start:
            self._read_listed(t, key)
        elif self._tokens[t - 1] == self._words.colon:
            self._sought = key

    def _read_name(self, t: int) -> None:
        """Reads a looked-up name; its target is the ID that follows it."""
        target = self._words.ids[self._tokens[t + 4]]
        self._code["match"][0][t + 3] = _thing_code(*target)
        if self._sought:
            source = self._ends[self._sought]
        elif self._asked_name is not None:
            source = self._asked_name
        else:
            look = self._looks[target]
            source = [end for key, end in self._ends.items() if self._looks[key] == look][-1]
        for i in (0, 1):
            self._code["name_source"][0][t + i] = source + 1

    def _read_listed(self, t: int, key: tuple[int, int]) -> None:
        """Reads a list entry, whose ID is at position t."""
        code, (image, m) = self._code, key
        look = self._tokens[t + 2], self._tokens[t + 3]
        end = t + 4
        code["match"][1][end] = code["at_box"][1][end + 5] = _thing_code(image, m)
        code["name_source"][1][end] = end + 1
        hashed = 1 + look[0] * 1000 + look[1]
        code["like"][1][end] = hashed
        code["like"][0][end] = hashed if look in self._looks.values() else -1
        self._looks[key], self._ends[key] = look, end
        if self._scenes:
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

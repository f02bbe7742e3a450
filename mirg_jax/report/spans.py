"""Splitting a model's text into pieces, so that a page can colour each object like its box."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.grounding import boxes, grammar
from mirg_jax.grounding.grammar import GroundedObject

# The tokens around each part of an object; pages use the same names of parts.
TOKENS = {
    "id": (grammar.ID_START, grammar.ID_END),
    "name": (grammar.OBJECT_START, grammar.OBJECT_END),
    "box": (grammar.BOX_START, grammar.BOX_END),
}
# No quantifier matches across a "<", so that matching takes linear time for any text.
_PARTS = re.compile(
    "|".join(
        f"{re.escape(start)}(?P<{kind}>[^<]*){re.escape(end)}"
        for kind, (start, end) in TOKENS.items()
    )
)
_WORD = re.compile(r"\w")


class Piece(NamedTuple):
    """A part of an object: its kind, the text between its tokens, and the object's number."""

    kind: str  # a key of TOKENS
    content: str
    object: int


class Place(NamedTuple):
    """A box of an object in fractions of the image's sides; images count from 1."""

    object: int
    image: int
    box: tuple[float, float, float, float]


class Spans(NamedTuple):
    """A text split into prose and parts of objects, with the objects' names and boxes.

    Parts with the same ID belong to the same object. A box without an ID belongs to the object that
    already has this box, or to a new one.
    """

    pieces: list[str | Piece]
    names: list[str]
    places: list[Place]


def read(
    text: str, num_images: int, image: int = 1, objects: Sequence[GroundedObject] = ()
) -> Spans:
    """Splits a text into prose and parts of objects, by the same rules as `grammar`.

    Args:
      text: any string.
      num_images: number of images in the prompt.
      image: image of the boxes for which the text names none.
      objects: objects with image and number that are known in addition to those of the text.
    """
    scan = _Scan(num_images, image)
    for known in objects:
        scan.place((known.image, known.number), known.image, known.box, known.label)
    end = 0
    for match in _PARTS.finditer(text):
        scan.prose(text[end : match.start()])
        scan.part(match.lastgroup, match[match.lastgroup])
        end = match.end()
    scan.prose(text[end:])
    scan.release()
    return scan.spans


class _Scan:
    """Scans a text once. Parts wait for the ID or box that determines their object."""

    def __init__(self, num_images: int, image: int):
        self.spans = Spans([], [], [])
        self._num_images = num_images
        self._default = image
        self._said: int | None = None  # image named last in the text so far
        self._numbers: dict[tuple[int | None, int | None], int] = {}  # object by ID
        self._boxes: dict[tuple[int, tuple[float, ...]], int] = {}  # object by image and box
        self._places: set[Place] = set()
        self._waiting: list[int] = []  # pieces whose object is not known yet
        self._id: tuple[int, int] | None = None

    def prose(self, text: str) -> None:
        """Adds the text between two parts."""
        if _WORD.search(text):
            self.release()
            self._said = grammar.find_image_index(text, self._num_images) or self._said
        if text:
            self.spans.pieces.append(text)

    def part(self, kind: str, content: str) -> None:
        """Adds a part."""
        if kind == "id" and self._id:
            self.release()
        self._waiting.append(len(self.spans.pieces))
        self.spans.pieces.append(Piece(kind, content, -1))
        if kind == "id":
            self._id = grammar.read_id(content)
        elif kind == "box":
            start, end = TOKENS["box"]
            found, _ = grammar.find_objects(f"{start}{content}{end}")
            if found:
                image, _ = self._id or (self._said, None)
                self._settle(self.place(self._id, image, found[0].box))
            else:
                self.release()

    def release(self) -> None:
        """Ends the wait: a bare ID is a later mention; other parts belong to no object."""
        if self._id:
            self._settle(self.number(self._id, ""))
        self._waiting, self._id = [], None

    def number(self, identity: tuple[int | None, int | None] | None, name: str) -> int:
        """Returns the number of the object with an ID, adding an object if there is none."""
        if identity in self._numbers:
            return self._numbers[identity]
        self.spans.names.append(name)
        if identity:
            self._numbers[identity] = len(self.spans.names) - 1
        return len(self.spans.names) - 1

    def place(
        self,
        identity: tuple[int | None, int | None] | None,
        image: int | None,
        box: boxes.Box,
        name: str = "",
    ) -> int:
        """Adds a box, if its image exists.

        Returns:
          The number of its object.
        """
        if image is None:
            image = self._default
        if not 1 <= image <= self._num_images:
            return self.number(identity, name)
        sides = image, boxes.grid_to_fraction(box)
        if identity is None and sides in self._boxes:
            return self._boxes[sides]
        number = self.number(identity, name)
        place = Place(number, *sides)
        if place not in self._places:
            self._places.add(place)
            self.spans.places.append(place)
        self._boxes.setdefault(sides, number)
        return number

    def _settle(self, number: int) -> None:
        """Assigns the waiting parts to an object."""
        for i in self._waiting:
            piece = self.spans.pieces[i]
            self.spans.pieces[i] = piece._replace(object=number)
            if piece.kind == "name" and not self.spans.names[number]:
                self.spans.names[number] = piece.content.strip()
        self._waiting, self._id = [], None

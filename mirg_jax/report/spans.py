"""A model's text in pieces, so that a page can give each object the colour of its box."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.grounding import boxes, grammar
from mirg_jax.grounding.grammar import GroundedObject

# The parts of an object, by the name that pages know them by.
TOKENS = {
    "id": (grammar.ID_START, grammar.ID_END),
    "name": (grammar.OBJECT_START, grammar.OBJECT_END),
    "box": (grammar.BOX_START, grammar.BOX_END),
}
# No quantifier crosses a "<", which keeps the search linear in the text whatever a model wrote.
_PARTS = re.compile(
    "|".join(
        f"{re.escape(start)}(?P<{kind}>[^<]*){re.escape(end)}"
        for kind, (start, end) in TOKENS.items()
    )
)
_WORD = re.compile(r"\w")


class Piece(NamedTuple):
    """A part of an object: what stands between its tokens, and which object of the text it is."""

    kind: str  # of TOKENS
    content: str
    object: int


class Place(NamedTuple):
    """A box of an object, in fractions of an image's sides; images count from 1."""

    object: int
    image: int
    box: tuple[float, float, float, float]


class Spans(NamedTuple):
    """A text as prose and parts of objects, the names of its objects, and their boxes.

    An object is what goes by one id; and a box without an id is the object that has that box
    already, or a new one.
    """

    pieces: list[str | Piece]
    names: list[str]
    places: list[Place]


def read(
    text: str, num_images: int, image: int = 1, objects: Sequence[GroundedObject] = ()
) -> Spans:
    """Finds the objects of a text, as `grammar` reads them.

    Args:
      text: any string.
      num_images: number of images of the prompt.
      image: where a box is put whose image the text doesn't say.
      objects: known besides the text's own; each with image and number.
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
    """One pass over a text. Parts wait for the id or box that says whose they are."""

    def __init__(self, num_images: int, image: int):
        self.spans = Spans([], [], [])
        self._num_images = num_images
        self._default = image
        self._said: int | None = None  # the image that the wording named last
        self._numbers: dict[tuple[int | None, int | None], int] = {}  # id → object
        self._boxes: dict[tuple[int, tuple[float, ...]], int] = {}  # box → object
        self._places: set[Place] = set()
        self._waiting: list[int] = []  # pieces whose object is not known yet
        self._id: tuple[int, int] | None = None

    def prose(self, text: str) -> None:
        if _WORD.search(text):
            self.release()
            self._said = grammar.find_image_index(text, self._num_images) or self._said
        if text:
            self.spans.pieces.append(text)

    def part(self, kind: str, content: str) -> None:
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
                image = self._id[0] if self._id else self._said
                self._settle(self.place(self._id, image, found[0].box))
            else:
                self.release()

    def release(self) -> None:
        """Ends the wait: a bare id is a later mention, anything else belongs to no object."""
        if self._id:
            self._settle(self.number(self._id, ""))
        self._waiting, self._id = [], None

    def number(self, identity: tuple[int | None, int | None] | None, name: str) -> int:
        """The object of an id, a new one where there is none."""
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
        """Puts a box into its image, if there is such an image; the object that it is of."""
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
        """What waited is of this object."""
        for i in self._waiting:
            piece = self.spans.pieces[i]
            self.spans.pieces[i] = piece._replace(object=number)
            if piece.kind == "name" and not self.spans.names[number]:
                self.spans.names[number] = piece.content.strip()
        self._waiting, self._id = [], None

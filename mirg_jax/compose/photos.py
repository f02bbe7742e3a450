"""Photos with labelled boxes: the one form that every source is read into."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence

from mirg_jax.compose.names import alike

Sides = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Attributes = tuple[tuple[str, str], ...]  # kind and value, as ("colour", "red")

_LEAST_PIXELS = 8
_LEAST_SIDE = 0.03  # of the photo's
_MOST_AREA = 0.8  # of the photo's


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An object of a photo.

    Attributes:
      label: what it is called in questions; "" where the source doesn't name it.
      box: in pixels of the photo's file.
      kind: a wider class that it belongs to, such as COCO's supercategory; "" for none.
      attributes: what else is known of it.
      track: its name within the photo's sequence; "" for none.
      phrases: descriptions, each of this object and no other of its photo.
    """

    label: str
    box: Sides
    kind: str = ""
    attributes: Attributes = ()
    track: str = ""
    phrases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Values of its attributes and the label, as "red circle"."""
        return " ".join((*(value for _, value in self.attributes), self.label))

    def fits(self, label: str, attributes: Attributes = ()) -> bool:
        """Returns whether the object may be meant by a label and attributes.

        An object whose attribute of that kind isn't known may be meant too.
        """
        if not alike(self.label, label):
            return False
        own = dict(self.attributes) if attributes else {}
        return all(own.get(name, value) == value for name, value in attributes)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo, or a frame of a sequence.

    Attributes:
      path: relative to the image root.
      objects: its labelled objects.
      size: width and height of the file; None until the file was looked at.
      complete: whether every object of the classes that the source knows has a box.
      looked_for: further classes whose every object has a box, or that are not there.
      unsure: classes of which there may be more than the boxes show.
      sequence: the sequence whose frame it is; "" for a single photo.
      frame: the frame's number.
      known: classes whose objects are all boxed, but for those in `unsure`; of a photo that the
        index returns.
      group: of photos with the same group none are taken into one example.
    """

    path: str
    objects: tuple[Labelled, ...] = ()
    size: tuple[int, int] | None = None
    complete: bool = False
    looked_for: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    sequence: str = ""
    frame: int = 0
    known: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    group: str = dataclasses.field(default="", compare=False)

    def count(self, label: str, attributes: Attributes = ()) -> int | None:
        """Returns how many objects a label and attributes may mean; None where it isn't known."""
        if label not in self.known or any(alike(label, each) for each in self.unsure):
            return None
        return sum(each.fits(label, attributes) for each in self.objects)

    def usable(self) -> list[Labelled]:
        """Returns the objects that are neither tiny nor nearly the whole photo."""
        return [each for each in self.objects if is_usable(each.box, self.pixels)]

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height, of a photo that was looked at."""
        assert self.size is not None
        return self.size


def is_usable(box: Sides, size: tuple[int, int]) -> bool:
    """Returns whether a box can be asked for: neither tiny nor nearly the whole image."""
    width, height = box[2] - box[0], box[3] - box[1]
    sides = zip((width, height), size, strict=True)
    if not all(side >= max(_LEAST_PIXELS, _LEAST_SIDE * whole) for side, whole in sides):
        return False
    return width * height <= _MOST_AREA * size[0] * size[1]


def to_fractions(box: Sequence[float], size: tuple[int, int]) -> Sides:
    """Converts a box in pixels to fractions of the sides, cut at the image's edges."""
    width, height = size
    sides = zip(box, (width, height, width, height), strict=True)
    x1, y1, x2, y2 = (min(max(value / side, 0.0), 1.0) for value, side in sides)
    return x1, y1, x2, y2


def scaled(box: Sequence[float], size: tuple[int, int], to: tuple[int, int]) -> Sides:
    """Converts a box in pixels of an image to pixels of the same image in another size."""
    x1, y1, x2, y2 = to_fractions(box, size)
    return x1 * to[0], y1 * to[1], x2 * to[0], y2 * to[1]


def overlap(one: Sides, other: Sides) -> float:
    """Returns the intersection over union of two boxes; `boxes.iou` is for arrays of them."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return both / (sum(areas) - both)


def merged(photos: Iterable[Photo]) -> Photo:
    """Joins what several rows or sources say of the same photo.

    Boxes that nearly coincide, and whose labels may be said of the same object, are one object.
    """
    first, *others = photos
    if not others:
        return dataclasses.replace(first, objects=_in_order(first.objects))
    objects: list[Labelled] = []
    for each in sorted(
        (each for photo in (first, *others) for each in photo.objects),
        key=lambda each: (not each.label, _key(each)),
    ):
        place = next((i for i, old in enumerate(objects) if _is_same(old, each)), None)
        if place is None:
            objects.append(each)
        else:
            objects[place] = _joined(objects[place], each)
    whole = [photo for photo in (first, *others) if photo.sequence] or [first]
    return dataclasses.replace(
        whole[0],
        path=min(photo.path for photo in (first, *others)),
        objects=_in_order(objects),
        complete=any(photo.complete for photo in (first, *others)),
        looked_for=frozenset().union(*(photo.looked_for for photo in (first, *others))),
        unsure=frozenset().union(*(photo.unsure for photo in (first, *others))),
    )


def _in_order(objects: Iterable[Labelled]) -> tuple[Labelled, ...]:
    """Sorts objects, so that the order in files doesn't count, without exact repetitions."""
    return tuple(sorted(dict.fromkeys(objects), key=_key))


def _key(each: Labelled) -> tuple:
    return each.label, each.box, each.kind, each.attributes, each.track, each.phrases


def _is_same(one: Labelled, other: Labelled) -> bool:
    if one.track and other.track:
        return one.track == other.track
    named = one.label and other.label
    return overlap(one.box, other.box) > 0.8 and (not named or alike(one.label, other.label))


def _joined(one: Labelled, other: Labelled) -> Labelled:
    return dataclasses.replace(
        one,
        label=one.label or other.label,
        kind=one.kind or other.kind,
        attributes=one.attributes or other.attributes,
        track=one.track or other.track,
        phrases=tuple(sorted({*one.phrases, *other.phrases})),
    )


# As text, for the index --------------------------------------------------------------------------


def to_text(photo: Photo) -> str:
    """Returns a photo as JSON, but for `known` and `group`."""
    row = [
        photo.path,
        [[o.label, o.box, o.kind, o.attributes, o.track, o.phrases] for o in photo.objects],
        photo.size,
        photo.complete,
        sorted(photo.looked_for),
        sorted(photo.unsure),
        photo.sequence,
        photo.frame,
    ]
    return json.dumps(row, separators=(",", ":"))


def from_text(text: str) -> Photo:
    """Returns the photo that `to_text` has written."""
    path, objects, size, complete, looked_for, unsure, sequence, frame = json.loads(text)
    return Photo(
        path,
        tuple(
            Labelled(label, tuple(box), kind, tuple(map(tuple, attributes)), track, tuple(phrases))
            for label, box, kind, attributes, track, phrases in objects
        ),
        None if size is None else tuple(size),
        complete,
        frozenset(looked_for),
        frozenset(unsure),
        sequence,
        frame,
    )


@functools.lru_cache(maxsize=1 << 12)
def all_known(*vocabularies: frozenset[str]) -> frozenset[str]:
    """Returns all names of some vocabularies, one set for all photos that have the same."""
    return frozenset().union(*vocabularies)

"""Tasks that ask for an object of whole photos: what they share, a name, a close view, a look-up.

Each function draws an example of its task, or raises `NotPossible` with the reason. That there is
one right answer follows from the labels: classes whose every object has a box, and names that may
be said of the same object count as the same.
"""

import numpy as np

from mirg_jax.compose import edits
from mirg_jax.compose.drafts import (
    TRIES,
    Draft,
    check_apart,
    close_up,
    grid_box,
    in_pixels,
    only_one,
    pick,
    put_among,
    without,
)
from mirg_jax.compose.edits import Pixels
from mirg_jax.compose.index import ANY, ONE, SEVERAL
from mirg_jax.compose.library import Library, NotPossible
from mirg_jax.compose.names import COLOUR, alike, with_article
from mirg_jax.compose.photos import Attributes, Labelled, Photo
from mirg_jax.compose.wordings import ask


def common_object(rng: np.random.Generator, library: Library) -> Draft:
    """Three to five photos that share one class, of which the one asked about has one object."""
    label = library.draw_name(rng, "label:", 3)
    target = library.draw(rng, f"label:{label}", ONE)
    thing = only_one(target, label)
    count = min(int(rng.integers(3, 6)), library.count(f"label:{label}"))
    others: list[Photo] = []
    shared = _labels(target) - {label}
    for _ in range(TRIES * count):
        if len(others) == count - 1:
            break
        photo = library.draw(rng, f"label:{label}", ANY)
        if photo.group in {each.group for each in (target, *others)}:
            continue
        left = {each for each in shared if photo.count(each) != 0}
        # What all photos so far share must vanish with the last one at the latest.
        if len(others) == count - 2 and left:
            continue
        shared = left
        others.append(photo)
    among = set.intersection(*map(_labels, others)) if others else set()
    hidden = any(target.count(each) != 0 for each in among if not alike(each, label))
    if len(others) < count - 1 or hidden:
        raise NotPossible("the photos share another class, or may share one")
    images, image = put_among(rng, target, others)
    question = ask(rng, "common_object", image=image)
    return _of_photos(question, images, image, thing, label)


def _of_photos(
    question: str, images: tuple[Photo, ...], image: int, thing: Labelled, label: str
) -> Draft:
    """Returns the draft that asks for an object of whole photos."""
    box = grid_box(thing.box, images[image - 1].pixels)
    return Draft(question, images, image, box, label, _paths(images))


def _in_second(
    question: str, seen: Pixels, shown: Photo, target: Photo, thing: Labelled, label: str
) -> Draft:
    """Returns the draft that shows something of a photo, and asks for an object of another."""
    box = grid_box(thing.box, target.pixels)
    return Draft(question, (seen, target), 2, box, label, (shown.path, target.path))


def _labels(photo: Photo) -> set[str]:
    """Returns all classes that a photo shows or may show."""
    return {each.label for each in photo.objects if each.label} | photo.unsure


def group_grounding(rng: np.random.Generator, library: Library) -> Draft:
    """Three to five photos, and a name or a description that fits one object of all of them."""
    target, thing, words, attributes = _named(rng, library)
    others = without(
        rng,
        library,
        int(rng.integers(2, 5)),
        thing.label,
        attributes,
        kind=thing.kind,
        groups=(target.group,),
    )
    images, image = put_among(rng, target, others)
    return _of_photos(ask(rng, "group_grounding", name=words), images, image, thing, words)


def _named(rng: np.random.Generator, library: Library) -> tuple[Photo, Labelled, str, Attributes]:
    """Draws a photo and an object of it, words for it alone, and what of them is in labels."""
    if library.count("phrases") and rng.random() < 0.5:
        photo = library.draw(rng, "phrases")
        things = [each for each in photo.usable() if each.phrases and each.label]
        thing = pick(rng, things)
        # "the left one" says too little among several photos.
        phrases = [each for each in thing.phrases if _names_class(each, thing.label)]
        if not phrases:
            raise NotPossible("the description doesn't name the object's class")
        return photo, thing, pick(rng, phrases), ()
    if library.names("attributes:") and rng.random() < 0.5:
        label = library.draw_name(rng, "attributes:")
        photo = library.draw(rng, f"attributes:{label}")
        things = [each for each in photo.usable() if each.label == label and each.attributes]
        thing = pick(rng, things)
        only_one(photo, label, thing.attributes)
        return photo, thing, thing.name, thing.attributes
    label = library.draw_name(rng, "label:", 1, ONE)
    photo = library.draw(rng, f"label:{label}", ONE)
    thing = only_one(photo, label)
    return photo, thing, label, ()


def _names_class(phrase: str, label: str) -> bool:
    """Returns whether one of a phrase's words is a name for a class."""
    words = phrase.replace(",", " ").split()
    pairs = (f"{one} {other}" for one, other in zip(words, words[1:], strict=False))
    return any(alike(each, label) for each in (*words, *pairs))


def refer_grounding(rng: np.random.Generator, library: Library) -> Draft:
    """A close view of an object, and photos: the object itself, or the only one of its kind."""
    if rng.random() < 0.5:
        return _refer_to_kind(rng, library)
    photo = library.draw(rng, "objects")
    thing = pick(rng, photo.usable())
    seen = close_up(rng, library, photo, thing, changed=True)
    others: list[Photo] = []
    if thing.label and rng.random() < 0.7:
        count = int(rng.integers(1, 3))
        others = without(rng, library, count, thing.label, kind=thing.kind, groups=(photo.group,))
    among, place = put_among(rng, photo, others)
    image = place + 1
    words = "refer_anywhere" if others and rng.random() < 0.5 else "refer_grounding"
    return Draft(
        ask(rng, words, image=image),
        (seen, *among),
        image,
        grid_box(thing.box, photo.pixels),
        thing.label,
        _paths(among),
    )


def _refer_to_kind(rng: np.random.Generator, library: Library) -> Draft:
    label, shown, thing, target, found = _pair(rng, library)
    seen = close_up(rng, library, shown, thing, changed=False)
    question = ask(rng, "refer_kind", image=2)
    return _in_second(question, seen, shown, target, found, label)


def _pair(
    rng: np.random.Generator, library: Library
) -> tuple[str, Photo, Labelled, Photo, Labelled]:
    """Draws a class, a photo with an object of it, and another photo with exactly one."""
    label = library.draw_name(rng, "label:", 2)
    target = library.draw(rng, f"label:{label}", ONE)
    found = only_one(target, label)
    shown = library.draw(rng, f"label:{label}")
    things = [each for each in shown.usable() if each.label == label]
    check_apart(shown, target)
    return label, shown, pick(rng, things), target, found


def correspondence(rng: np.random.Generator, library: Library) -> Draft:
    """An object marked in one photo, and another photo with one object of the class.

    The other photo has nothing else of the same wider class, which might serve the same end.
    """
    label, shown, thing, target, found = _pair(rng, library)
    if found.kind and any(each.kind == found.kind for each in target.objects if each != found):
        raise NotPossible("another object is of the same wider class")
    pixels, box = in_pixels(library, shown, thing)
    marked = edits.mark(pixels, edits.whole_pixels(box, edits.size_of(pixels)))
    question = ask(rng, "correspondence", image=2)
    return _in_second(question, marked, shown, target, found, label)


# Look-ups -----------------------------------------------------------------------------------------


def reasoning(rng: np.random.Generator, library: Library) -> Draft:
    """A look-up from one image in another: by an attribute, by place or size, by what is beside."""
    look_ups = [_by_order, _by_company]
    if library.names(f"attribute:{COLOUR}="):
        look_ups.append(_by_attribute)
    return look_ups[int(rng.integers(len(look_ups)))](rng, library)


def _by_attribute(rng: np.random.Generator, library: Library) -> Draft:
    """Which object has the colour of the one in image 1? All objects' colours are known."""
    found = library.draw_name(rng, f"attribute:{COLOUR}=", 2)
    name = f"attribute:{COLOUR}={found}"
    shown, target = library.draw(rng, name), library.draw(rng, name)
    check_apart(shown, target)
    wanted = (COLOUR, found)
    seen = [each for each in shown.usable() if wanted in each.attributes]
    thing = pick(rng, seen)
    colours = [dict(each.attributes).get(COLOUR) for each in target.objects]
    if None in colours or not target.known or target.unsure:
        raise NotPossible("the labels don't tell every object's attribute")
    (answer, *more) = [each for each in target.objects if wanted in each.attributes]
    if more or answer not in target.usable():
        raise NotPossible("several objects fit")
    if alike(answer.label, thing.label):
        raise NotPossible("the object with the same attribute is of the same class")
    question = ask(rng, "reasoning_attribute", image=2, kind=COLOUR)
    close = close_up(rng, library, shown, thing, changed=False)
    return _in_second(question, close, shown, target, answer, answer.name)


# By word: what is compared of a box, the largest first, and the share of the photo's width, height
# or area by which it must be ahead of the next.
_ORDERS = {
    "leftmost": (lambda b: -(b[0] + b[2]) / 2, 0),
    "rightmost": (lambda b: (b[0] + b[2]) / 2, 0),
    "topmost": (lambda b: -(b[1] + b[3]) / 2, 1),
    "lowest": (lambda b: (b[1] + b[3]) / 2, 1),
    "largest": (lambda b: ((b[2] - b[0]) * (b[3] - b[1])) ** 0.5, None),
}
_AHEAD = 0.08


def _by_order(rng: np.random.Generator, library: Library) -> Draft:
    """Of several objects of the class of image 1, which is the leftmost, the largest, …?"""
    label = library.draw_name(rng, "label:", 1, SEVERAL)
    target = library.draw(rng, f"label:{label}", SEVERAL)
    shown = library.draw(rng, f"label:{label}")
    check_apart(shown, target)
    seen = [each for each in shown.usable() if each.label == label]
    thing = pick(rng, seen)
    word = list(_ORDERS)[int(rng.integers(len(_ORDERS)))]
    measure, axis = _ORDERS[word]
    things = [each for each in target.objects if each.fits(label)]
    first, second = sorted(things, key=lambda each: -measure(each.box))[:2]
    ahead = measure(first.box) - measure(second.box)
    needed = measure(first.box) * 0.3 if axis is None else _AHEAD * target.pixels[axis]
    if ahead < needed:
        raise NotPossible("no object is clearly ahead of the others")
    if first not in target.usable() or first.label != label:
        raise NotPossible("the photo has no object that can be asked for")
    question = ask(rng, "reasoning_order", image=2, most=word)
    close = close_up(rng, library, shown, thing, changed=False)
    return _in_second(question, close, shown, target, first, label)


def _by_company(rng: np.random.Generator, library: Library) -> Draft:
    """Several photos show a class; which of them shows another class too?"""
    label = library.draw_name(rng, "label:", 2, ONE)
    target = library.draw(rng, f"label:{label}", ONE)
    thing = only_one(target, label)
    beside = sorted(
        {
            each.label
            for each in target.usable()
            if each.label and not alike(each.label, label) and target.count(each.label)
        }
    )
    other = pick(rng, beside)
    count, rivals = int(rng.integers(1, 3)), []
    for _ in range(TRIES * count):
        photo = library.draw(rng, f"label:{label}", ONE)
        groups = {each.group for each in (target, *rivals)}
        if len(rivals) < count and photo.group not in groups and photo.count(other) == 0:
            rivals.append(photo)
    if len(rivals) < count:
        raise NotPossible("too few photos are known to be without such an object")
    images, image = put_among(rng, target, rivals)
    plain, wanted = with_article(label), with_article(other)
    question = ask(rng, "reasoning_company", plain=plain, other=wanted)
    return _of_photos(question, images, image, thing, label)


def _paths(images: tuple[Photo, ...]) -> tuple[str, ...]:
    return tuple(each.path for each in images)

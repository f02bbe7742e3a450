"""Names of classes: when two may be said of the same object, and colours that names begin with."""

import functools
import re

from mirg_jax.grounding.grammar import OBJECT_END, OBJECT_START

COLOURS = frozenset(
    "red green blue yellow purple black white orange brown grey gray pink silver golden beige "
    "cyan magenta turquoise violet".split()
)
COLOUR = "colour"
# Names that annotators, and data sets, give to the same things. Where one is asked for, an object
# with another of them would be an answer too.
_SAME = (
    "person, people, man, woman, boy, girl, child, kid, baby, lady, guy, pedestrian, rider, "
    "cyclist, player, human, crowd",
    "car, vehicle, automobile, van, suv, taxi, truck, pickup, bus, minibus, lorry",
    "motorcycle, motorbike, scooter, moped",
    "bicycle, bike, cycle",
    "airplane, aeroplane, plane, aircraft, jet",
    "boat, ship, vessel, sailboat",
    "couch, sofa, settee",
    "chair, armchair, stool, seat",
    "table, desk, dining table, diningtable",
    "tv, television, tvmonitor, monitor, screen, laptop, computer",
    "cell phone, mobile phone, phone, telephone, smartphone",
    "cup, mug, glass, wine glass",
    "bag, handbag, backpack, suitcase, purse, luggage, briefcase",
    "cow, bull, ox, cattle, calf",
    "sheep, goat, lamb",
    "donut, doughnut",
    "plant, potted plant, pottedplant, flower, tree",
    "bowl, plate, dish",
)
_GROUPS = {name.strip(): number for number, names in enumerate(_SAME) for name in names.split(",")}
_MOST_CHARACTERS = 200
_MARKUP = re.compile(r"<[/|]?\w|\|>")


def clean(label: object) -> str:
    """Returns a label in the form that questions use: lower case, single spaces, no underscores.

    Args:
      label: what the source has.

    Raises:
      ValueError: if it is no text, empty, too long, or holds marks of the answers' format.
    """
    if not isinstance(label, str):
        raise ValueError("the label is not text")
    name = " ".join(label.replace(OBJECT_START, "").replace(OBJECT_END, "").split())
    name = name.replace("_", " ").strip().lower()
    if not name:
        raise ValueError("the label is empty")
    if len(name) > _MOST_CHARACTERS:
        raise ValueError(f"the label has {len(name)} characters")
    if _MARKUP.search(name):
        raise ValueError("the label holds marks of the answers' format")
    return name


def split_colour(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Splits "red circle" into "circle" and its colour; a colour alone, as "orange", is a name."""
    words = name.split()
    if words and words[0] in ("a", "an", "the") and len(words) > 1:
        words = words[1:]
    if len(words) > 1 and words[0] in COLOURS:
        return " ".join(words[1:]), ((COLOUR, words[0]),)
    return " ".join(words), ()


@functools.lru_cache(maxsize=1 << 16)
def alike(one: str, other: str) -> bool:
    """Returns whether two names may be said of the same object.

    That is so for equal names, for one that ends the other ("table", "dining table"), in the
    singular or plural, and for names that data sets use for the same things ("couch", "sofa").
    """
    one, other = _singular(one), _singular(other)
    if one == other or one.endswith(f" {other}") or other.endswith(f" {one}"):
        return True
    groups = _groups(one) & _groups(other)
    return bool(groups)


def with_article(name: str) -> str:
    """Returns "a dog", "an apple"."""
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"


def _groups(name: str) -> set[int]:
    """The groups of a name and of its last word."""
    return {_GROUPS[each] for each in (name, name.split()[-1]) if each in _GROUPS}


def _singular(name: str) -> str:
    if len(name) > 3 and name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name[:-1]
    return name

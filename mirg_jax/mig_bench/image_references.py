"""Reading which image a part of a response names: in a field, in words, or in an object's ID.

Only what surely refers to an image counts: a number, an ordinal, "image N", the name of an image's
file. Any other text, as in "picture": "oil painting", names none.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.grounding import grammar

# The image of a box whose image is named, but isn't there.
OTHER = 0

_IMAGE = r"(?:image|img|picture|photo|frame)"
_ROLE = r"(?:index|idx|id|number|num|no|name|file|path)"
_OF = r"(?:(?:target|answer|in|on|box|bbox|object)[ _-]?)?"
_NUMERALS = "one two three four five six seven eight nine ten eleven twelve".split()
_ORDINAL = rf"{'|'.join((*grammar.ORDINALS, 'last', 'final'))}|\d{{1,3}}(?:st|nd|rd|th)"
_QUOTES = r"[\"'*`]{0,3}"
# The name of a field such as "image": 2, target_image=1, 'frame_id': "3", **Image:** 2, or its tag,
# as in <image>2</image>; `open` tells names that are surely not part of a sentence.
_NAME = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?P<open>[\"']|\{\s{0,3})?"
    rf"{_OF}{_IMAGE}[ _-]?{_ROLE}?{_QUOTES}\s{{0,3}}[:=：][*`]{{0,3}}\s{{0,3}}"
    rf"|(?P<tag><){_OF}{_IMAGE}[ _-]?{_ROLE}?>\s{{0,3}})",
    re.IGNORECASE,
)
# Before its value, if that is an object: {"index": 2}.
_INNER = rf"(?:\{{\s{{0,3}}[\"']?(?:{_IMAGE}[ _-]?)?{_ROLE}[\"']?\s{{0,3}}[:=]\s{{0,3}})?"
# What may follow it. Not the word that tells what it is the number of, as in "image: 2 dogs".
_END = (
    r"(?=[*`]{0,3}\s{0,3}(?:[,;:|()}\[\]<>\n]|\.(?!\d)|[–—-]\s|(?:at|box|bbox|bounding box)\b|\Z))"
)
# Its value: 2, "Image-2", #2, 2.0, [2], image_2.png, "2nd", "the second image", "two", 2 of 3.
_VALUE = re.compile(
    rf"{_INNER}(?P<list>[\[(]\s{{0,3}})?{_QUOTES}"
    rf"(?:(?:{_IMAGE}[ #_-]{{0,2}}|\#|no\. ?)?(?P<number>\d{{1,3}})"
    r"(?:\.0{1,9}|\.(?:png|jpe?g|webp))?(?:(?: of |/)\d{1,3})?"
    rf"|(?:{_IMAGE} )?(?P<numeral>{'|'.join(_NUMERALS)})"
    rf"|(?:the )?(?P<ordinal>{_ORDINAL})(?: (?:{_IMAGE}|one))?)"
    rf"{_QUOTES}(?(list)\s{{0,3}}[\])]){_END}",
    re.IGNORECASE | re.ASCII,
)
# Other numbers, which can only be those of images that aren't there: -1, 1.5, [1, 2].
_OTHER_NUMBER = re.compile(
    rf"{_INNER}\[?\s{{0,3}}[\"']?-?\d[\d., ]{{0,30}}[\"']?\s{{0,3}}\]?\s{{0,3}}(?:[,;|}}\]\n]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_FILE = re.compile(rf"{_INNER}[\"']([^\"'\n]{{1,300}})[\"']", re.IGNORECASE)
# Words that our own grammar doesn't read: image (2), image number 2, img 2, image two, the 2nd
# input image. A numeral behind "the image" may be that of the objects in it.
_MORE_WORDS = re.compile(
    rf"\b{_IMAGE}(?:\s?[(\[]\s?(?P<bracketed>\d{{1,3}})\s?[)\]]"
    rf"|\s{{1,2}}(?:number|num|no\.?|nr\.?|index|id)\s?#?(?P<numbered>\d{{1,3}})(?![\d.]*\d)\b)"
    r"|\bimg[\s#_-]{0,2}(?P<short>\d{1,3})\b"
    rf"|(?<!\bthe\s)(?<!\bthis\s)(?<!\bthat\s)\b{_IMAGE}[\s_-](?P<numeral>{'|'.join(_NUMERALS)})\b"
    r"(?=\s{0,3}(?:[^\w\s]|(?:at|is|shows|contains|has)\b|\Z))"
    rf"|\b(?P<ordinal>{_ORDINAL})\s{{1,2}}(?:(?:input|given|provided)\s{{1,2}}{_IMAGE}|img)\b",
    re.IGNORECASE | re.ASCII,
)
_OBJECT_ID = re.compile(
    f"{re.escape(grammar.ID_START)}([^<]{{0,40}}){re.escape(grammar.ID_END)}"
    rf"[^\w<]{{0,40}}(?:{re.escape(grammar.OBJECT_START)}[^<]{{0,400}}"
    rf"{re.escape(grammar.OBJECT_END)}[^\w<]{{0,40}})?\Z"
)
_LONGEST_ID = 600  # characters of an ID and a name behind it


class Field(NamedTuple):
    """A field that names an image, and where it begins."""

    start: int
    image: int


def find_fields(text: str, box_starts: set[int], images: Sequence[str]) -> list[Field]:
    """Finds the fields that name an image, there or not (`OTHER`).

    Numbers count from 1, or from 0 if any of them is 0.

    Args:
      text: the response.
      box_starts: where its boxes begin.
      images: paths of the question's images.
    """
    found: list[tuple[re.Match, re.Match | None]] = []
    for name in _NAME.finditer(text):
        if name.end() in box_starts:
            continue
        value = _VALUE.match(text, name.end())
        if name["tag"] and value and not text.startswith("</", value.end()):
            continue
        found.append((name, value))
    values = [value for _, value in found if value]
    from_0 = any(value["number"] and int(value["number"]) == 0 for value in values)
    fields = []
    for name, value in found:
        image = _read_value(value, from_0, len(images)) if value else None
        file = _FILE.match(text, name.end()) if name["open"] else None
        if named := file and _find_file(file[1], images):
            image = named if image in (None, named) else None  # "1.jpg" may be the second image
        elif value is None and name["open"] and _OTHER_NUMBER.match(text, name.end()):
            image = OTHER
        if image is not None:
            fields.append(Field(name.start(), image))
    return fields


def _read_value(value: re.Match, from_0: bool, num_images: int) -> int:
    """Returns the image that a value of `_VALUE`'s form stands for."""
    if value["number"]:
        number = int(value["number"]) + from_0
        return number if 1 <= number <= num_images else OTHER
    return grammar.find_image_index(_canonical(value), num_images) or OTHER


def _canonical(words: re.Match) -> str:
    """Returns words for an image as our grammar has them."""
    parts = words.groupdict()
    if parts["ordinal"]:
        return f" {parts['ordinal']} image "
    if parts["numeral"]:
        return f" image {_NUMERALS.index(parts['numeral'].lower()) + 1} "
    return f" image {parts['bracketed'] or parts['numbered'] or parts['short']} "


def _find_file(name: str, images: Sequence[str]) -> int | None:
    """Returns the number of the image whose file has a name; None if it isn't exactly one."""
    for same in (lambda path: path == name, lambda path: pathlib.PurePath(path).name == name):
        if found := [number for number, path in enumerate(images, 1) if same(path)]:
            return found[0] if len(found) == 1 else None
    return None


def find_words(text: str, num_images: int) -> int | None:
    """Returns the image that the last such words name, as "the second image" or "image (2)".

    Args:
      text: the words.
      num_images: number of images of the question.

    Returns:
      The number of the image, or `OTHER` if it isn't there; None if no words name any.
    """
    text = _MORE_WORDS.sub(_canonical, text)
    if found := grammar.find_image_index(text, num_images):
        return found
    return OTHER if grammar.find_image_index(text) else None


def grammar_reads(text: str, num_images: int) -> bool:
    """Returns whether our own grammar finds the image that `find_words` does."""
    return grammar.find_image_index(text, num_images) == (find_words(text, num_images) or None)


def find_object_id(text: str, start: int, end: int) -> int | None:
    """Returns the image of the object's ID that a box has before it; None if it has none.

    Args:
      text: the response.
      start: where the box before it ends.
      end: where the box begins.
    """
    match = _OBJECT_ID.search(text[max(start, end - _LONGEST_ID) : end])
    if match is None:
        return None
    image, number = grammar.read_id(match[1]) or (OTHER, 0)
    return image if number else OTHER
